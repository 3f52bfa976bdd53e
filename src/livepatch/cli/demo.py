"""`livepatch demo`: the whole way once, on this machine."""

from __future__ import annotations

import click


@click.command("demo", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo_command(arguments: tuple[str, ...]) -> int:
    """See a vulnerable server become safe under load, without a restart, and go back."""
    from livepatch import demo

    try:
        return demo.main(list(arguments)) or 0
    except SystemExit as ended:  # it reads its options itself
        return int(ended.code or 0)
