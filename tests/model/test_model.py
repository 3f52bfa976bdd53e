"""The library against the model, over random histories; see `machine.py`.

`LIVEPATCH_HISTORIES=20000 ./run test --python 3.11 tests/model` tries more of them than the usual hundreds, other
ones each time, and takes the time for an idea that is hard to tell apart.
"""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.model import model
from tests.model.machine import Histories

MORE = int(os.environ.get("LIVEPATCH_HISTORIES", "0"))
PARTS = 4


def run(machine, count, *, random=False, report=True):
    phases = [Phase.generate, Phase.shrink] if report else [Phase.generate]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=count,
            stateful_step_count=14,
            deadline=None,
            database=None,
            derandomize=not random,
            phases=phases,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_hundred_histories():
    run(Histories, 100, random=bool(MORE))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_hundreds_of_histories(part):
    """Derandomized histories depend on the machine's name, so each part has its own."""
    machine = type(f"Histories{part}", (Histories,), {})
    run(machine, (MORE or 400) // PARTS, random=bool(MORE))


class Lifo(model.Model):
    """Patches can be disabled from the top only: older kernels, and most people's first idea."""

    def write(self, name, enabled):
        if self.listed and not enabled and self.changing is None and self.listed[-1].name != name:
            return 16
        return super().write(name, enabled)


class Backwards(model.Model):
    """Callbacks run in the reverse order when a patch goes."""

    def _complete(self):
        if self.changing is not None and self.goal == model.UNPATCHED:
            self.changing.funcs = dict(reversed(self.changing.funcs.items()))
        super()._complete()


class NoNops(model.Model):
    """What a cumulative patch does not mention stays as it is."""

    def load(self, patch):
        replace, patch.replace = patch.replace, False
        result = super().load(patch)
        patch.replace = replace
        return result


class EverybodyOut(model.Model):
    """Nobody may be inside of a function that changes, be it in the version that it is to be in."""

    def _blocked(self, holder):
        if self.front(holder.module, holder.function) is not self.changing:
            return False
        holder.state = 1 - self.goal
        return True


@pytest.mark.parametrize("wrong", [Lifo, Backwards, NoNops, *[EverybodyOut] * bool(MORE)])
def test_it_is_not_blind(wrong):
    """Another idea of what the kernel does is told apart from it."""
    machine = type(f"Blind{wrong.__name__}", (Histories,), {"model_class": wrong})
    with pytest.raises(BaseException, match="instead of"):
        run(machine, 5000, report=False)  # the first one found ends it
