"""Prices in cents, and a cache of them."""

RATE = 7  # percent
CACHE: dict[int, int] = {}


def gross(net: int) -> int:
    if net not in CACHE:
        CACHE[net] = compute(net)
    return CACHE[net]


def compute(net: int) -> int:
    return net * (100 + RATE) // 100  # the bug: always rounds down
