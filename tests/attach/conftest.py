"""Attaching takes as long as it takes: what a test does not limit itself is not a matter of seconds."""

import pytest
from tests.agent.targets import PATIENCE

from livepatch.attach import entry


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setitem(entry.attach.__kwdefaults__, "timeout", PATIENCE)
