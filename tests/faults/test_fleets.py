"""A command about several processes is killed at its steps: each of them is all old or all new, or in a transition
that the next command tells of, and one command brings all of them back.
"""

import contextlib
import os
import signal
import uuid

import pytest
from tests.faults.kit import Service, patches_of, settled

#: Each begins with the patch not loaded, loaded, or held up in its transition in the second process.
COMMANDS = {
    "load": ("old", ["load", "PATCH"]),
    "load that stalls": ("held", ["load", "HELD", "--timeout", "0.2"]),
    "load by force": ("held", ["load", "HELD", "--timeout", "0.2", "--on-stall", "force", "--yes"]),
    "force": ("moving", ["force", "fix", "--yes"]),
    "disable": ("new", ["disable", "fix", "--unload"]),
}


class Fleet:
    """Two services, and how to name both of them, also where one has nothing to do with it."""

    def __init__(self, lp, folder, stack):
        word = uuid.uuid4().hex
        self.lp = lp
        self.all = [stack.enter_context(Service(folder, arguments=(word,))) for _ in range(2)]
        self.pids = [part for service in self.all for part in ("--pid", service.pid)]
        self.name = ["--name", word]

    def begin(self, situation):
        first, second = self.all
        if situation in ("held", "moving"):
            second.occupy()
        if situation == "new":
            assert self.lp("load", first.patch, *self.pids).status == 0
        if situation == "moving":
            load = ("load", first.held, *self.pids, "--timeout", 0, "--on-stall", "keep")
            assert self.lp(*load).status in (0, 3)

    def is_told(self):
        """What the next command says of each is what is so."""
        shown = {entry["pid"]: entry for entry in self.lp.json("list", *self.pids)}
        for service in self.all:
            told = {p["name"]: (p["enabled"], p["transition"]) for p in shown[service.pid]["patches"]}
            held = told.get("fix", (False, False))[1]
            assert told == patches_of(service.pid) or held, "nothing goes on by itself but a transition"
            if not held:
                assert service.ask().split()[0] == ("new" if told.get("fix", (False,))[0] else "old")

    def bring_back(self):
        """One command, which is held up by nobody: who is inside of the old code may stay there."""
        if any(patches_of(service.pid) for service in self.all):
            done = self.lp("disable", "fix", *self.name)
            none_enabled = "is enabled in none of the" in done.err
            assert done.status == 0 or none_enabled, done.err
        for service in self.all:
            assert settled(service.pid) is False
            assert service.ask().split()[0] == "old"
            service.say("leave")
        if any(patches_of(service.pid) for service in self.all):
            done = self.lp("unload", "fix", *self.name)
            assert done.status == 0, done.err
        assert [patches_of(service.pid) for service in self.all] == [{}, {}]


@pytest.fixture
def fleet(lp, tmp_path):
    with contextlib.ExitStack() as stack:
        yield Fleet(lp, tmp_path, stack)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_its_steps(fleet, lp, name):
    situation, command = COMMANDS[name]
    known = {"PATCH": fleet.all[0].patch, "HELD": fleet.all[0].held}
    words = [known.get(word, word) for word in command]
    step, killed, torn = 0, True, "force" in name
    while killed:
        # Of a question and its answer there are four: so it is each of them, at some question. All steps would take
        # ten minutes; commands about one process go through all.
        step += 3
        fleet.begin(situation)
        done = lp(*words, *fleet.pids, at=step, happens=lambda: os.kill(os.getpid(), signal.SIGKILL))
        killed = done.status == -signal.SIGKILL
        fleet.is_told()
        fleet.bring_back()
        assert torn or all(service.ask() == "old torn 0" for service in fleet.all)
    assert step > 10
