"""What every test of every layer gets. Fixtures for one layer live in that layer's folder."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def usual_switch_interval() -> Iterator[None]:
    """Tests of consistency make threads switch every 20 us; the next test must not inherit that."""
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)
