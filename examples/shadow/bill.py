"""Shadow variables, second part: goes on top of give_back.py, uses the variables of that, and adds its own.

`get_or_alloc` reaches every guest, also those who were there before any patch: whoever has no counter yet gets one when
it is first needed.
"""

import sys
from types import SimpleNamespace
from typing import Any

import livepatch as lp

SEAT = "lounge: seat"  # the other patch's
TAB = "lounge: tab"

lounge: Any = sys.modules["__main__"]


def new_tab(guest: Any) -> SimpleNamespace:
    return SimpleNamespace(drinks=0)


def serve(guest: Any) -> str:
    tab = lp.shadow.get_or_alloc(guest, TAB, new_tab)
    tab.drinks += 1
    return f"drink {tab.drinks} for {guest.name}"


def give_back(guest: Any, number: int) -> None:
    lounge.SEATS.pop(number)


def leave(guest: Any) -> str:
    lp.shadow.free(guest, SEAT, give_back)
    tab = lp.shadow.get(guest, TAB)  # nobody need free it: it goes when the guest does
    return f"{guest.name} pays for {tab.drinks if tab else 0} and leaves"


def post_unpatch(module: lp.Object) -> None:
    lp.shadow.free_all(TAB)  # its own only


__livepatch__ = lp.Patch(
    "bill",
    [
        lp.Object(
            None,
            [lp.Func("serve", serve), lp.Func("leave", leave)],
            callbacks=lp.Callbacks(post_unpatch=post_unpatch),
        )
    ],
)
