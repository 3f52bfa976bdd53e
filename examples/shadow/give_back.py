"""Shadow variables, first part: stop a leak by giving live objects a field that their class does not have.

A guest gets their seat attached, from the outside, and gives it back when leaving. Guests who were there before the
patch have no such variable, and `free` does nothing for them: their seats stay lost, but no others.
"""

import sys
from typing import Any

import livepatch as lp

SEAT = "lounge: seat"  # any hashable value; one that nobody else will use

lounge: Any = sys.modules["__main__"]


def take_seat(guest: Any) -> int:
    """The constructor: what it returns is the data of the variable."""
    number = next(lounge.numbers)
    lounge.SEATS[number] = guest.name
    return number


def give_back(guest: Any, number: int) -> None:
    """The destructor."""
    lounge.SEATS.pop(number)


def arrive(name: str) -> Any:
    guest = lounge.Guest(name)
    lp.shadow.alloc(guest, SEAT, take_seat)
    return guest


def leave(guest: Any) -> str:
    lp.shadow.free(guest, SEAT, give_back)
    return f"{guest.name} leaves"


# Variables belong to no patch. Without this they would stay, and a patch that is loaded later would find them.
def post_unpatch(module: lp.Object) -> None:
    lp.shadow.free_all(SEAT)


__livepatch__ = lp.Patch(
    "give_back",
    [
        lp.Object(
            None,
            [lp.Func("arrive", arrive), lp.Func("leave", leave)],
            callbacks=lp.Callbacks(post_unpatch=post_unpatch),
        )
    ],
)
