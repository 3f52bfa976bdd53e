"""Live instances in a real process, from the command line: what it will cost is shown before anything is touched."""

import pytest
from tests.agent.targets import Target

COUNT = 20_000

OLD = """
import collections

class Connection:
    def __init__(self, peer):
        self.peer = peer

class Secure(Connection):
    pass

def accept(peer):
    return Connection(peer)

def request(connection):
    return "served"
"""

#: The fix: so many requests for each connection, those that are open already too.
NEW = OLD.replace("import collections", "import livepatch\n\nLIMIT = 2\nLEFT = 'service: requests left'").replace(
    'return "served"',
    """left = livepatch.shadow.get(connection, LEFT)
    if not left[0]:
        return "too many"
    left[0] -= 1
    return "served\"""",
)
NEW = NEW.replace(
    "def accept(peer):\n    return Connection(peer)",
    """def limit(connection):
    return [LIMIT]

def accept(peer):
    connection = Connection(peer)
    livepatch.shadow.alloc(connection, LEFT, limit)
    return connection""",
)
HOOKS = """
import livepatch as lp
import service

def give(connection):
    lp.shadow.get_or_alloc(connection, service.LEFT, service.limit)

__livepatch__ = {"service": lp.Callbacks(post_unpatch=lambda obj: lp.shadow.free_all(obj.module.LEFT))}
__livepatch_instances__ = {"service:Connection": lp.Callbacks(pre_patch=give, post_patch=give)}
"""

#: `request N` to a connection, `accept`, `shapes`: what there is in all connections and how many variables.
SERVICE = f"""
    sys.path.insert(0, sys.argv[1])
    import service
    import livepatch as lp
    open = [service.accept(n) if n % 2 else service.Secure(n) for n in range({COUNT})]
    lp.start_agent()
    say("ready")
    while word := hear():
        if word == "accept":
            open.append(service.accept(len(open)))
            say(len(open) - 1)
        elif word == "shapes":
            say(sorted({{name for connection in open for name in vars(connection)}}), len(lp.shadow._entries))
        else:
            say(service.request(open[int(word)]))
"""


@pytest.fixture
def target(tmp_path):
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "service.py").write_text(OLD)
    with Target(SERVICE, arguments=(str(tmp_path / "live"),)) as running:
        assert running.hear() == "ready"
        yield running


@pytest.fixture
def build(lp, trees, tmp_path):
    def built(hooks=HOOKS):
        old, new = trees(OLD, NEW)
        (tmp_path / "fix_hooks.py").write_text(hooks)
        file = tmp_path / "fix.livepatch"
        return file, lp("build", "-o", file, "--old", old, "--new", new, "--hooks", tmp_path / "fix_hooks.py")

    return built


def asked(target, word):
    target.say(str(word))
    return target.hear()


def shown(out):
    """The rows of the table of what is gone through."""
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("It goes through live instances"))
    assert lines[start + 1].split() == ["CLASS", "INSTANCES", "OBJECTS", "ON", "THE", "HEAP", "STOP"]
    return [line.split() for line in lines[start + 2 :] if line.startswith("service:")]


def test_from_check_to_unload(lp, build, target):
    file, done = build()
    assert done.status == 0, done.err
    assert "goes through the live instances of service:Connection; `livepatch check` says" in lp("info", file).out
    assert lp("info", file, "--json").json["instances"] == ["service:Connection"]
    untouched = "['peer'] 0"

    done = lp("check", file, "--pid", target.pid)
    assert done.status == 0
    ((cls, live, objects, seconds, unit),) = shown(done.out)
    assert (cls, int(live), unit) == ("service:Connection", COUNT, "s")
    assert int(objects) > COUNT
    assert float(seconds) >= 0
    ((found,),) = [process["instances"] for process in lp("check", file, "--pid", target.pid, "--json").json]
    assert (found["class"], found["live"]) == ("service:Connection", COUNT)
    assert found["objects"] > COUNT
    assert found["seconds"] > 0
    assert asked(target, "shapes") == untouched
    assert [asked(target, 1) for _ in range(3)] == ["served"] * 3

    done = lp("load", file, "--pid", target.pid)
    assert done.status == 0
    assert done.out.index("It goes through live instances") < done.out.index("'fix' is loaded into process")
    assert shown(done.out)[0][:2] == ["service:Connection", str(COUNT)]
    assert asked(target, "shapes") == f"['peer'] {COUNT}"
    for number in (0, 1, COUNT - 1, asked(target, "accept")):
        assert [asked(target, number) for _ in range(3)] == ["served", "served", "too many"]

    assert lp("disable", "fix", "--unload", "--pid", target.pid).status == 0
    assert asked(target, "shapes") == untouched
    assert [asked(target, 1) for _ in range(3)] == ["served"] * 3
    found = lp("load", file, "--pid", target.pid, "--json").json  # and once more
    assert found["instances"][0]["live"] == COUNT + 1
    assert asked(target, "shapes") == f"['peer'] {COUNT + 1}"


def test_one_that_cannot_be_converted_refuses_the_load(lp, build, target):
    file, done = build(HOOKS.replace("(connection):\n", "(connection):\n    1 / (connection.peer - 77)\n"))
    assert done.status == 0, done.err
    done = lp("load", file, "--pid", target.pid)
    assert done.status == 1
    assert "callback for instances of 'Connection' in 'service' failed: ZeroDivisionError(" in done.err
    assert asked(target, "shapes") == "['peer'] 0"
    assert [asked(target, 1) for _ in range(3)] == ["served"] * 3
    assert lp("list", "--pid", target.pid, "--json").json[0]["patches"] == []


def test_one_that_fails_later_is_counted_in_the_log(lp, build, target):
    file, _ = build(
        HOOKS.replace("pre_patch=give, post_patch=give", "pre_patch=give, post_patch=lambda c: 1 // c.peer")
    )
    assert lp("load", file, "--pid", target.pid).status == 0
    said = (
        f"a callback failed for 1 of {COUNT} instances of 'Connection' in 'service' and was ignored: ZeroDivisionError"
    )
    assert said in lp("dmesg", "--pid", target.pid).out
    assert asked(target, COUNT - 1) == "served"


def test_a_class_that_is_not_there_is_told_by_check(lp, build, target):
    file, done = build(HOOKS.replace("service:Connection", "service:Connections"))
    assert done.status == 0, done.err
    for command in ("check", "load"):
        done = lp(command, file, "--pid", target.pid)
        assert done.status == 1
        assert done.err == "livepatch: 'Connections' is not a class in the live module 'service'.\n"
    assert asked(target, "shapes") == "['peer'] 0"


def test_what_the_build_says(build):
    file, done = build("import livepatch as lp\n__livepatch_instances__ = dict(a=1)")
    assert done.status == 1
    assert done.err.startswith("livepatch: hooks.py must write __livepatch_instances__ once, as {'module:Class'")
    assert not file.exists()


def test_by_hand(lp, target, tmp_path):
    """The same for a patch that is no archive: its object has the callbacks."""
    file = tmp_path / "marked.py"
    file.write_text(
        "import livepatch as lp\n"
        "mark = lp.Callbacks(post_patch=lambda c: setattr(c, 'mark', 1), pre_unpatch=lambda c: delattr(c, 'mark'))\n"
        "__livepatch__ = lp.Patch('', [lp.Object('service', instances={'Secure': mark})])\n"
    )
    assert shown(lp("check", file, "--pid", target.pid).out)[0][:2] == ["service:Secure", str(COUNT // 2)]
    assert asked(target, "shapes") == "['peer'] 0"
    assert shown(lp("load", file, "--pid", target.pid).out)[0][:2] == ["service:Secure", str(COUNT // 2)]
    assert asked(target, "shapes") == "['mark', 'peer'] 0"
    assert lp("disable", "marked", "--unload", "--pid", target.pid).status == 0
    assert asked(target, "shapes") == "['peer'] 0"


def test_callbacks_that_go_through_instances_by_themselves(lp, build, target):
    """Of which class they will ask is not known before they run; what it costs is."""
    hooks = """
import livepatch as lp

def mark(obj):
    for connection in lp.each_instance(obj.module.Connection):
        lp.shadow.get_or_alloc(connection, obj.module.LEFT, obj.module.limit)

def clear(obj):
    lp.shadow.free_all(obj.module.LEFT)

__livepatch__ = {"service": lp.Callbacks(post_patch=mark, post_unpatch=clear)}
"""
    file, done = build(hooks)
    assert done.status == 0, done.err
    done = lp("check", file, "--pid", target.pid)
    (row,) = [line.split() for line in done.out.splitlines() if line.startswith("each_instance(...)")]
    assert row[1] == "-"
    assert int(row[2]) > COUNT
    done = lp("load", file, "--pid", target.pid, "--json")
    assert [walk["live"] for walk in done.json["instances"]] == [None]
    assert asked(target, "shapes") == f"['peer'] {COUNT}"
    assert lp("disable", "fix", "--unload", "--pid", target.pid).status == 0
    assert asked(target, "shapes") == "['peer'] 0"


def test_classes_of_the_main_program(lp, tmp_path):
    """The program was started as a file; its module has the name of that where a patch is built."""
    script = """
        import livepatch as lp
        class Connection:
            pass
        def ask(): return "old"
        if __name__ == "__main__":
            open = [Connection() for _ in range(9)]
            lp.start_agent()
            say("ready")
            while hear(): say(ask(), sum(hasattr(connection, "late") for connection in open))
    """
    with Target(script, folder=tmp_path) as target:
        assert target.hear() == "ready"
        for version, word in (("old", "old"), ("new", "new")):
            (tmp_path / version).mkdir()
            text = (tmp_path / "target.py").read_text().replace('return "old"', f'return "{word}"')
            (tmp_path / version / "target.py").write_text(text)
        hooks = tmp_path / "fix_hooks.py"
        hooks.write_text(
            "import livepatch as lp\n"
            "late = lp.Callbacks(post_patch=lambda c: setattr(c, 'late', 1), post_unpatch=lambda c: vars(c).clear())\n"
            "__livepatch_instances__ = {'target:Connection': late}\n"
        )
        file = tmp_path / "fix.livepatch"
        done = lp("build", "-o", file, "--old", tmp_path / "old", "--new", tmp_path / "new", "--hooks", hooks)
        assert done.status == 0, done.err
        (found,) = lp("check", file, "--pid", target.pid, "--json").json
        assert [(walk["class"], walk["live"]) for walk in found["instances"]] == [("__main__:Connection", 9)]
        assert asked(target, "?") == "old 0"
        assert lp("load", file, "--pid", target.pid).status == 0
        assert asked(target, "?") == "new 9"
        assert lp("disable", "fix", "--unload", "--pid", target.pid).status == 0
        assert asked(target, "?") == "old 0"
