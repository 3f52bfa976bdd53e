"""What the tests of archives in a live process share."""

import pytest
from tests.core.kit import take_out

import livepatch as lp
from livepatch.core.model import LivepatchError
from livepatch.testing import finish

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
