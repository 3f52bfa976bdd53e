"""Where the installed command `livepatch` begins.

It is outside of the package, whose own first module thereby finds this one there, and knows that the process is the
command and no program; see there.
"""


def main() -> None:
    """The script's entry point; always ends with SystemExit."""
    from livepatch.cli import main

    main()
