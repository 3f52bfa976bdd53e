"""Functions of archives that are immediate: one that a task never leaves, and the consistency of all others."""

import dataclasses

import pytest
from tests.archive.kit import M, disabled, enabled, namespace, refusal
from tests.core.kit import Gate, take_out

import livepatch as lp
from livepatch.archive import fit, format
from livepatch.archive.survey import survey
from livepatch.testing import finish, manual_rounds, tick

#: A thread is always in `serve`, and answers requests with functions that the patch changes, consistently.
OLD = """
    class Loop:
        def __init__(self):
            self.said = []
        def run_forever(self):
            self.hold()
            self.said.append(pair())
            self.hold_again()
        def close(self):
            self.said.append("closed")

    def first(hold=None):
        if hold is not None:
            hold()
            return pair()
        return "old"
    def second(): return "old"
    def pair(between=None):
        one = first()
        if between is not None:
            between()
        return one, second()

    def serve(loop):
        loop.said.append("begin")
        loop.run_forever()
        loop.close()
        return "old"
"""
NEW = OLD.replace('return "old"', 'return "new"', 2)
NEW = NEW.replace("loop.run_forever()", "loop.run_forever()\n        assert loop is not None")


class Server:
    """A thread inside of `serve`, in the middle of the loop."""

    def __init__(self, m, worker):
        self.gates = Gate(), Gate()
        self.loop = m.Loop()
        self.loop.hold, self.loop.hold_again = self.gates
        self.returned = worker.begin(m.serve, self.loop)
        self.gates[0].arrived()

    def answers(self):
        """Go on by one request, and stay in the loop: what it says."""
        self.gates[0].open()
        self.gates[1].arrived()
        return self.loop.said[-1]

    def ends(self):
        self.gates[1].open()
        return self.returned.result(60), self.loop.said[-1]


@pytest.fixture
def m(package):
    package.have({M: OLD})
    return package.load()


def test_the_builder_says_it_and_the_patch_has_it(package, m):
    archive = package.archive({M: NEW})
    (entry,) = archive.manifest.objects
    assert {f.name: f.immediate for f in entry.functions} == {"first": False, "second": False, "serve": True}
    patch = fit.bind(archive)
    assert {f.old_name for f in patch.objects[0].funcs if f.immediate} == {"serve"}


def test_who_never_leaves_it_holds_nobody_up_and_moves(package, m, worker):
    server = Server(m, worker)
    before = namespace(m)
    enabled(package.bind({M: NEW}))
    assert m.pair() == ("new", "new")
    assert server.answers() == ("new", "new")
    disabled(lp.patches()[0])
    assert m.pair() == ("old", "old")
    assert server.ends() == ("old", "closed")
    assert namespace(m) == before


def test_without_it_the_transition_never_ends(package, m, worker):
    """What the test before would be without `immediate`."""
    archive = package.archive({M: NEW})
    (entry,) = archive.manifest.objects
    functions = tuple(dataclasses.replace(f, immediate=False) for f in entry.functions)
    objects = (dataclasses.replace(entry, functions=functions),)
    manifest = dataclasses.replace(archive.manifest, objects=objects)
    server = Server(m, worker)
    with manual_rounds():
        lp.enable_patch(fit.bind(dataclasses.replace(archive, manifest=manifest)))
        for _ in range(20):
            tick()
        assert lp.patches()[0].transition
        server.answers()
        server.ends()
        finish()
    take_out("fix")


def test_the_running_frame_ends_in_its_version_while_the_patch_is_in_force(package, m, worker):
    server = Server(m, worker)
    enabled(package.bind({M: NEW}))
    code = m.serve.__code__
    server.answers()
    assert server.ends() == ("old", "closed")
    assert "<livepatch fix>" in code.co_filename
    disabled(lp.patches()[0])


def test_disabled_and_enabled_again_while_both_versions_run(package, m, worker):
    """One thread is in the old version, one in the new; both see whole worlds, and both end well after all is gone."""
    original = m.serve.__code__
    old = Server(m, worker)
    patch = package.bind({M: NEW})
    enabled(patch)
    other = type(worker)()
    new = Server(m, other)
    lp.disable_patch("fix")
    finish()
    assert m.serve.__code__ is original
    assert old.answers() == ("old", "old")
    assert new.answers() == ("old", "old")
    lp.unload_patch("fix")
    enabled(package.bind({M: NEW}))
    assert m.pair() == ("new", "new")
    disabled(lp.patches()[0])
    assert old.ends() == ("old", "closed")
    assert new.ends() == ("old", "closed")
    other.close()
    assert m.serve.__code__ is original


def test_others_stay_consistent_meanwhile(package, m, worker):
    """One is between the two functions while the patch comes, and while it goes, and `serve` runs in its own thread."""
    server = Server(m, worker)
    other = type(worker)()
    patch = package.bind({M: NEW})
    with manual_rounds():
        for step, mine, its in (
            (lambda: lp.enable_patch(patch), "new", "old"),
            (lambda: lp.disable_patch("fix"), "old", "new"),
        ):
            gate = Gate()
            stayed = other.begin(m.first, gate)
            gate.arrived()
            step()
            tick()
            assert lp.patches()[0].transition
            assert m.pair() == (mine, mine)
            gate.open()
            assert stayed.result(60) == (its, its)
            finish()
    lp.unload_patch("fix")
    assert server.answers() == ("old", "old")
    server.ends()
    other.close()


def test_a_nested_function_and_what_is_around_it(package, worker):
    """On request, a function goes with all that is nested in it, for closures that exist and such as are made later."""
    old = """
        def f(hold):
            def g(): return "old"
            hold(g)
            return g()
    """
    package.have({M: old})
    m = package.load()
    kept, gate = [], Gate()
    running = worker.begin(m.f, lambda g: (kept.append(g), gate()))
    gate.arrived()
    tree = package.archive({M: old.replace('"old"', '"new"')}, at_once=["lp_pkg.m:f"])
    assert [function.immediate for function in tree.manifest.objects[0].functions] == [True, True]
    enabled(fit.bind(tree))
    assert kept[0]() == "new"
    assert m.f(kept.append) == "new"
    disabled(lp.patches()[0])
    assert [g() for g in kept] == ["old", "old"]
    gate.open()
    assert running.result(60) == "old"


def test_on_request_with_other_parameters_and_values(package, worker):
    """Whatever the author takes upon himself, all comes back."""
    old = "N = 1\ndef f(hold, a=1):\n    hold()\n    return N, a\n"
    package.have({M: old})
    m = package.load()
    gate, before = Gate(), namespace(m)
    running = worker.begin(m.f, gate)
    gate.arrived()
    new = "N = 2\ndef f(hold, a=3, b=4):\n    hold()\n    return N, a, b\n"
    enabled(fit.bind(package.archive({M: new}, at_once=["*:f"])))
    assert m.f(lambda: None) == (2, 3, 4)
    disabled(lp.patches()[0])
    assert m.f(lambda: None) == (1, 1)
    gate.open()
    assert running.result(60) == (1, 1)
    assert namespace(m) == before


def test_it_is_listed_as_such(package, m):
    archive = package.archive({M: NEW})
    (module,) = survey(archive)["modules"]
    shown = {function["name"]: (function["immediate"], function["reason"]) for function in module["functions"]}
    assert shown["first"] == (False, "body")
    assert shown["serve"][0]
    assert shown["serve"][1].startswith("body; immediate: tasks stay in loop.run_forever() (old line ")
    lp.enable_patch(fit.bind(archive))
    finish()
    assert lp.patches()[0].objects[0]["immediate"] == ["serve,1"]
    take_out("fix")


def test_an_archive_that_contradicts_itself(package, m):
    archive = package.archive({M: NEW})
    (entry,) = archive.manifest.objects
    functions = tuple(dataclasses.replace(f, retired=f.immediate) for f in entry.functions)
    objects = (dataclasses.replace(entry, functions=functions),)
    broken = dataclasses.replace(archive, manifest=dataclasses.replace(archive.manifest, objects=objects))
    assert "says that 'serve' is immediate, and has no new version" in refusal(format.read, format.write(broken))
