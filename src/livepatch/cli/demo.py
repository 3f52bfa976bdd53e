"""`livepatch demo`: the whole way once, on this machine."""

from __future__ import annotations

import click


@click.command("demo")
@click.option("--rate", type=float, default=400.0, show_default=True, metavar="N", help="Requests per second.")
@click.option("--connections", type=int, default=40, show_default=True, metavar="N", help="Keep-alive connections.")
@click.option(
    "--rounds",
    type=int,
    default=4,
    show_default=True,
    metavar="N",
    help="How often the patch goes in and out at the end.",
)
@click.option("--json", is_flag=True, help="Print the summary as JSON, the show to stderr.")
def demo_command(rate: float, connections: int, rounds: int, json: bool) -> int:
    """See a vulnerable server become safe under load, without a restart, and go back.

    The exit status is 0 if all promises held, and 1 if one did not.
    """
    from livepatch import demo

    return demo.main(demo.Options(rate, connections, rounds, json))
