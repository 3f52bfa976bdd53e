"""Greets whoever is named on a line of its input."""

import os
import sys


def greeting(name: str) -> str:
    return f"Good morning, {name}"


def main() -> None:
    print(f"process {os.getpid()}: type a name", flush=True)
    for line in sys.stdin:
        print(greeting(line.strip()), flush=True)


if __name__ == "__main__":
    main()
