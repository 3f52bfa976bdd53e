"""What the tests of archives in a live process share."""

import pytest
from tests.core.kit import Gate, take_out

import livepatch as lp
from livepatch.core.model import LivepatchError
from livepatch.testing import finish, manual_rounds

#: The module that most of them patch.
M = "lp_pkg/m.py"


def enabled(patch):
    lp.enable_patch(patch)
    finish()


def disabled(patch):
    take_out(patch.name)


def namespace(place):
    """Names and values, without what the interpreter keeps in there for itself."""
    return {name: value for name, value in vars(place).items() if name not in ("__builtins__", "__annotations__")}


def refusal(action, *arguments, **options):
    """The sentence with which something is refused."""
    with pytest.raises(LivepatchError) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_both_worlds(patch, worker, gate, hold, look):
    """What a task sees that has moved, and one that has not; while a patch comes, and while it goes."""
    seen = []
    for step in (lambda: lp.enable_patch(patch), lambda: lp.disable_patch(patch.name)):
        gate = Gate()
        with manual_rounds():
            stayed = worker.begin(lambda gate=gate: (hold(gate), look()))
            gate.arrived()
            step()
            seen.append(look())
            gate.open()
            seen.append(stayed.result(60))
            finish()
    lp.unload_patch(patch.name)
    return seen
