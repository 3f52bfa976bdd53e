"""A machine of the test's own, two keys, and the command line on that machine."""

import pytest
from tests.cli.conftest import lp
from tests.trust.kit import Key, Machine

from livepatch.archive import installed, policy

__all__ = ["lp"]


@pytest.fixture(scope="session")
def key(tmp_path_factory):
    return Key(tmp_path_factory.mktemp("keys"), "maker")


@pytest.fixture(scope="session")
def other_key(tmp_path_factory):
    return Key(tmp_path_factory.mktemp("keys"), "stranger")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Also for what runs in this process: the command line."""
    made = Machine(tmp_path)
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, made.env[name])
    monkeypatch.delenv(policy.VARIABLE, raising=False)
    monkeypatch.setattr(policy, "SYSTEM", str(made.etc))
    monkeypatch.setattr(policy, "_named", None)
    monkeypatch.setattr(installed, "SYSTEM", str(made.var))
    return made
