"""What the kernel's livepatch is documented to do, step by step and line by line; see `adapter.py`."""

import contextlib
import json

import pytest
from tests.core import kit
from tests.scenarios.adapter import DATA, Replay

from livepatch.core import log, redirect
from livepatch.testing import manual_rounds

SCENARIOS = [
    pytest.param(file.name, scenario, id=scenario["id"])
    for file in sorted(DATA.glob("*.json"))
    for scenario in json.loads(file.read_text())["scenarios"]
]


@pytest.mark.parametrize(("file", "scenario"), SCENARIOS)
def test_scenario(file, scenario, tmp_path):
    log.clear()
    try:
        with manual_rounds() if scenario.get("manual") else contextlib.nullcontext():
            Replay(file, tmp_path).run(scenario)
        assert not redirect.redirections
    finally:
        left = kit.clean_up()
    assert left == scenario.get("left", [])


def test_the_kernels_nine_are_all_there():
    data = json.loads((DATA / "callbacks.json").read_text())
    assert [scenario["id"] for scenario in data["scenarios"]] == [f"callbacks-{n:02}" for n in range(1, 10)]
