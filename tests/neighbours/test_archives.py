"""Neighbours of archives: they are refused as patches by hand are, and leave alone what others have put in places."""

import errno
import unittest.mock

import pytest
from tests.archive.kit import M
from tests.core import kit
from tests.neighbours import exchange

import livepatch as lp
from livepatch.archive import fit
from livepatch.testing import finish

pytestmark = pytest.mark.usefixtures("rounds_by_hand")


@pytest.mark.parametrize("source", ["def f(): return 'old'\n", "if __name__:\n    def f(): return 'old'\n"])
def test_who_rewrote_a_function_first_keeps_it(package, source):
    """Also one that is left out of a patch if it is not there: it is there, and somebody holds it."""
    package.have({M: source})
    archive = package.archive({M: source.replace("old", "new")})
    module = package.load()
    restore = exchange.rewrite(module.f, exchange.Probe())
    for dry in (True, False):
        with pytest.raises(lp.LivepatchError) as caught:
            fit.bind(archive, dry=dry)
        assert caught.value.errno == errno.EBUSY
        assert str(caught.value) == (
            "The code of 'f' in 'lp_pkg.m' has been exchanged by 'tests.neighbours.exchange'; take that back first."
        )
    assert module.f() == "old!"
    restore()
    lp.enable_patch(fit.bind(archive))
    assert module.f() == "new"
    kit.take_out("fix")
    assert module.f() == "old"


def test_a_wrapper_outlives_an_archive(package):
    source = "def f(x=1):\n    'Old.'\n    return 'old', x\n"
    package.have({M: source})
    module = package.load()
    lp.enable_patch(package.bind({M: source.replace("old", "new").replace("Old", "New")}))
    unwrap = exchange.wrap(module.f, lambda inner, args, kwargs: ("shown", *inner(*args, **kwargs)))
    assert (module.f(), module.f.__doc__) == (("shown", "new", 1), "New.")
    kit.take_out("fix")
    assert (module.f(), module.f.__doc__) == (("shown", "old", 1), "Old.")
    unwrap()
    assert module.f() == ("old", 1)


def test_a_constant_that_somebody_mocks_while_a_patch_comes_or_goes(package):
    """Neither the mock nor what it hides is lost."""
    source = "__version__ = '1'\ndef f(gate=None):\n    if gate: gate()\n    return 'old'\n"
    package.have({M: source})
    module = package.load()
    worker, gate = kit.Worker(), kit.Gate()
    inside = worker.begin(module.f, gate)
    gate.arrived()
    lp.enable_patch(package.bind({M: source.replace("old", "new").replace("1", "2")}))
    with unittest.mock.patch.object(module, "__version__", "mocked"):
        gate.open()
        assert inside.result(kit.PATIENCE) == "old"
        finish()
        assert module.__version__ == "mocked"
    assert module.__version__ == "1"
    kit.take_out("fix")
    assert module.__version__ == "1"
    worker.close()

    lp.enable_patch(package.bind({M: source.replace("old", "new").replace("1", "2")}, "again"))
    assert module.__version__ == "2"
    with unittest.mock.patch.object(module, "__version__", "mocked"):
        kit.take_out("again")
        assert module.__version__ == "mocked"
