"""Says hello and goodbye to whoever is named."""

import os
import sys


def hello(name: str) -> str:
    return f"hello {name}"


def goodbye(name: str) -> str:
    return f"goodbye {name}"


def main() -> None:
    print(f"process {os.getpid()}: type in NAME, or out NAME", flush=True)
    for line in sys.stdin:
        command, _, name = line.strip().partition(" ")
        print(hello(name) if command == "in" else goodbye(name), flush=True)


if __name__ == "__main__":
    main()
