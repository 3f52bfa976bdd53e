"""Sells tickets, up to a limit."""

import os
import sys

LIMIT = 2
sold = 0


def sell() -> str:
    global sold
    if sold >= LIMIT:
        return f"sold out at {LIMIT}"
    sold += 1
    return f"ticket {sold}"


def main() -> None:
    print(f"process {os.getpid()}: type sell", flush=True)
    for _ in sys.stdin:
        print(sell(), flush=True)


if __name__ == "__main__":
    main()
