"""What every test of every layer gets. Fixtures for one layer live in that layer's folder."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Layers that any Python serves alike: what they show of the interpreter is tested beneath them.
ONCE = ("cli", "fs", "model")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in ONCE:
            item.add_marker("once")


@pytest.fixture(autouse=True)
def usual_switch_interval() -> Iterator[None]:
    """Tests of consistency make threads switch every 20 us; the next test must not inherit that."""
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)
