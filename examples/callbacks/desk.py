"""Says what a net price is with tax, 7 % or what the command line says; `report` imports a module at its first use."""

import os
import sys

import prices


def answer(line: str) -> object:
    if line == "report":
        import report

        return report.headline()
    return prices.gross(int(line))


def main() -> None:
    prices.RATE = int(sys.argv[1]) if len(sys.argv) > 1 else prices.RATE
    print(f"process {os.getpid()}: type a price, or report", flush=True)
    for line in sys.stdin:
        print(answer(line.strip()), flush=True)


if __name__ == "__main__":
    main()
