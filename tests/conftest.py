"""What every test of every layer gets. Fixtures for one layer live in that layer's folder."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Layers that any Python serves alike: what they show of the interpreter is tested beneath them.
ONCE = ("build", "cli", "cve", "faults", "fleet", "fs", "model", "observe")


# A shell that runs the tests in the background has that ignored, and all that they start would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in ONCE:
            item.add_marker("once")
    # The list is dealt out in as many pieces as processes test: what takes long shall be in all of them.
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    gap = len(others) // max(len(slow), 1)
    for number, item in enumerate(slow):
        others.insert(number * (gap + 1), item)
    items[:] = others


@pytest.fixture(autouse=True, scope="session")
def audit_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands of tests do not write into the record of this machine."""
    file = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    os.environ["LIVEPATCH_AUDIT"] = str(file)
    return file


@pytest.fixture(autouse=True)
def usual_switch_interval() -> Iterator[None]:
    """Tests of consistency make threads switch every 20 us; the next test must not inherit that."""
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)
