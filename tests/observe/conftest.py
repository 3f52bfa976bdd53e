"""A service, the command line in this process, and an audit record of the test's own."""

import json

import pytest
from tests.cli.conftest import ask, lp, occupied, patch, service, trees

__all__ = ["ask", "lp", "occupied", "patch", "service", "trees"]


@pytest.fixture
def record(tmp_path, monkeypatch):
    """The file, which is not there yet."""
    file = tmp_path / "audit.jsonl"
    monkeypatch.setenv("LIVEPATCH_AUDIT", str(file))
    return file


def records(file):
    """What is in it."""
    return [json.loads(line) for line in file.read_text().splitlines()]
