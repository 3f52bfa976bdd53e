"""`livepatch check` of an archive against a live process: what is there, what is not, and what would become active."""

import pytest
from tests.agent.targets import Target

OLD = """
def greet(name):
    return "old " + name

def leave(name):
    return "bye " + name
"""
NEW = OLD.replace("old ", "new ").replace("bye ", "later ")

PROGRAM = """
    import sys
    sys.path.insert(0, FOLDER)
    import service
    import livepatch as lp
    lp.start_agent()
    say("ready")
    hear()
"""


@pytest.fixture
def user(tmp_path):
    """A process that has imported a module `service` with this source."""
    started = []

    def start(source):
        folder = tmp_path / f"live{len(started)}"
        folder.mkdir()
        (folder / "service.py").write_text(source)
        target = Target(PROGRAM.replace("FOLDER", repr(str(folder))))
        started.append(target)
        target.__enter__()
        assert target.hear() == "ready"
        return target

    yield start
    for target in started:
        target.__exit__(None, None, None)


@pytest.fixture
def archive(lp, trees, tmp_path):
    """An archive of the step from one source to another."""

    def built(name, old=OLD, new=NEW, *options):
        before, after = trees(old, new)
        file = tmp_path / f"{name}.livepatch"
        done = lp("build", "-o", file, "--old", before, "--new", after, *options)
        assert done.status == 0, done.err
        return file

    return built


def test_what_would_be_active(lp, archive, user):
    target = user(OLD)
    file = archive("fix")
    done = lp("check", file, "--pid", target.pid)
    assert (done.status, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines()[2:4]]
    assert rows == [["service", "greet", "fits", "active", "-"], ["service", "leave", "fits", "active", "-"]]
    assert lp("load", file, "--pid", target.pid).status == 0

    on_top = archive("two", NEW, NEW.replace("new ", "newest "))
    done = lp("check", on_top, "--pid", target.pid)
    assert done.status == 0
    assert "fits   active, in front of 'fix'" in done.out
    instead = archive("three", OLD, OLD.replace("old ", "newest "), "--replace")
    done = lp("check", instead, "--pid", target.pid)
    assert done.status == 0
    assert "fits   active, instead of 'fix'" in done.out
    done = lp("check", file, "--pid", target.pid)  # it is loaded already
    assert done.status == 1
    assert "it is what the patch would make of it, by the patch 'fix'" in done.out
    there = "livepatch: A patch named 'fix' is loaded already (enabled); disable and unload it first.\n"
    assert done.err == there == lp("load", file, "--pid", target.pid).err
    assert lp("disable", "fix", "--pid", target.pid).status == 0
    done = lp("load", file, "--pid", target.pid)
    assert (
        done.err == "livepatch: A patch named 'fix' is loaded already (disabled but not unloaded); unload it first.\n"
    )


def test_what_is_in_the_way_of_a_patch_is_shown_as_a_difference(lp, archive, user):
    target = user(OLD.replace('"old " + name', '"old " + name.title()'))
    done = lp("check", archive("fix"), "--pid", target.pid)
    assert done.status == 1
    assert done.err == "livepatch: The live 'greet' in 'service' is not the one that the patch was built for.\n"
    shown = done.out.splitlines()
    assert any(line.split()[:4] == ["service", "greet", "differs", "-"] for line in shown)
    assert any(line.split()[:4] == ["service", "leave", "fits", "-"] for line in shown)
    assert "it uses title" in done.out
    assert '-    return "old " + name' in shown
    assert '+    return "old " + name.title()' in shown

    (found,) = lp("check", archive("fix"), "--pid", target.pid, "--json").json
    assert found["error"]["symbol"] == "EINVAL"
    (module,) = found["modules"]
    greet, leave = module["functions"]
    assert (greet["state"], leave["state"]) == ("differs", "fits")
    assert greet["live"] == 'def greet(name):\n    return "old " + name.title()'
    assert greet["expected"] == 'def greet(name):\n    return "old " + name'
    assert lp("list", "--pid", target.pid, "--json").json[0]["patches"] == []


def test_a_process_that_has_the_fix_already(lp, archive, user):
    target = user(NEW)
    done = lp("check", archive("fix"), "--pid", target.pid)
    assert done.status == 1
    assert done.out.count("it is what the patch would make of it") == 2


def test_several_processes_are_told_each_by_itself(lp, archive, user):
    good, bad = user(OLD), user(NEW)
    done = lp("check", archive("fix"), "--pid", bad.pid, "--pid", good.pid, "--json")
    assert done.status == 1
    assert ["error" in found for found in done.json] == [True, False]
