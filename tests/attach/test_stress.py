"""Every victim is attached to and is none the worse; `./run attach-stress` does it hundreds of times."""

import signal

import pytest
from tests.attach.victims import VICTIMS, Running

from livepatch.attach import entry

#: Seconds that an attach may take: far more than any needs, the machine may be busy.
LIMIT = 60.0


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if victim.slow else name for name, victim in VICTIMS.items()],
)
def test_it_is_attached_to_and_stays_healthy(name):
    with Running(VICTIMS[name]) as victim:
        with entry.attach(victim.pid, timeout=LIMIT) as client:
            assert client.hello["pid"] == victim.pid
        assert victim.verdict() == ("healthy", "")


def test_harm_is_found():
    """What the others rely on."""
    with Running(VICTIMS["loop"]) as victim:
        assert victim.verdict() == ("healthy", "")
    with Running(VICTIMS["loop"]) as victim:
        victim.patience = 0.5
        victim.process.send_signal(signal.SIGSTOP)
        assert victim.verdict()[0] == "hung"
    with Running(VICTIMS["loop"]) as victim:
        victim.patience = 0.5
        victim.process.send_signal(signal.SIGTRAP)
        assert victim.verdict()[0] == "dead"
