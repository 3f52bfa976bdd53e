"""`python -m livepatch`: the command, for environments whose scripts are not on PATH."""

from livepatch.cli import main

if __name__ == "__main__":
    main()
