"""Guests come and go; `seats` says how many seats are taken, which grows for ever."""

import itertools
import os
import sys

SEATS: dict[int, str] = {}
numbers = itertools.count(1)


class Guest:
    """Has no room for anything but a name."""

    __slots__ = ("__weakref__", "name")

    def __init__(self, name: str) -> None:
        self.name = name


def arrive(name: str) -> Guest:
    guest = Guest(name)
    SEATS[next(numbers)] = name
    return guest


def serve(guest: Guest) -> str:
    return f"a drink for {guest.name}"


def leave(guest: Guest) -> str:
    return f"{guest.name} leaves"  # the leak: nobody knows which seat was theirs


def main() -> None:
    print(f"process {os.getpid()}: type arrive NAME, serve NAME, leave NAME, or seats", flush=True)
    guests: dict[str, Guest] = {}
    for line in sys.stdin:
        command, _, name = line.strip().partition(" ")
        if command == "arrive":
            guests[name] = arrive(name)
            print(f"{name} is here", flush=True)
        elif command == "serve":
            print(serve(guests[name]), flush=True)
        elif command == "leave":
            print(leave(guests.pop(name)), flush=True)
        else:
            print(len(SEATS), flush=True)


if __name__ == "__main__":
    main()
