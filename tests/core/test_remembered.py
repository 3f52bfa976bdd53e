"""What is remembered by weak reference goes away at any instant, also while it is being gone through."""

from __future__ import annotations

import gc

import pytest

from livepatch.core.remembered import Remembered


def in_cycles(count: int) -> Remembered:
    """Codes that only the garbage collector finds dead."""
    remembered = Remembered()
    original = in_cycles.__code__
    for i in range(count):
        code = original.replace(co_name=f"copy{i}")
        cycle = [code]
        cycle.append(cycle)
        remembered.add(code, original)
    return remembered


@pytest.mark.parametrize("ask", [Remembered.all, lambda remembered: remembered.of(in_cycles.__code__)])
def test_a_collection_while_they_are_listed(ask):
    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()  # or every collection goes through all that the test session has
    try:
        for allocations in range(100):
            gc.disable()
            remembered = in_cycles(50)
            assert len(remembered) == 50
            gc.set_threshold(gc.get_count()[0] + allocations)
            gc.enable()
            ask(remembered)
            gc.collect()
            assert len(remembered) == 0
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
        gc.unfreeze()
