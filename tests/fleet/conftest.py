"""Several prepared services, and the command line in this process."""

import contextlib

import pytest
from tests.agent.targets import Target
from tests.cli.conftest import SERVICE, lp, patch

__all__ = ["lp", "patch"]


@pytest.fixture
def services():
    """Start so many services; in the order of their pids, as they are named."""
    with contextlib.ExitStack() as stack:

        def start(count):
            targets = [stack.enter_context(Target(SERVICE)) for _ in range(count)]
            for target in targets:
                assert target.hear() == "ready"
            return sorted(targets, key=lambda target: target.pid)

        yield start


def pids(targets):
    """The options that name them."""
    return [word for target in targets for word in ("--pid", target.pid)]


def occupy(target):
    """A thread of it is inside of `slow` until "leave" is said."""
    target.say("enter")
    assert target.hear() == "inside"


def answers(targets):
    """What each of them answers now."""
    for target in targets:
        target.say("ask")
    return [target.hear() for target in targets]


def states(lp, targets):
    """Of each, its patches: enabled, in transition."""
    listed = lp("list", *pids(targets), "--json").json
    return [{p["name"]: (p["enabled"], p["transition"]) for p in process["patches"]} for process in listed]
