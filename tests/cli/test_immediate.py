"""Functions that are immediate, wherever the command line shows functions: build and its page, info, check, status."""

import pytest
from tests.agent.targets import Target
from tests.build.test_page import Page

OLD = """
    def greet(): return "old"
    def serve(server):
        server.serve_forever()
        server.close()
"""
ALIKE = OLD.replace('"old"', '"new"').replace("server.close()", "assert server\n        server.close()")
OTHERWISE = OLD.replace('"old"', '"new"').replace("server.close()", "greet()")

#: A thread of it is always in `serve`.
SERVICE = """
    import importlib, sys
    import livepatch as lp
    sys.path.insert(0, hear())
    import service
    class Server:
        leave = threading.Event()
        def serve_forever(self):
            say("inside")
            self.leave.wait()
        def close(self): say("closed")
    lp.start_agent()
    threading.Thread(target=service.serve, args=(Server(),), name="server").start()
    while (word := hear()):
        if word == "ask": say(service.greet())
        if word == "leave": Server.leave.set()
    Server.leave.set()
"""


@pytest.fixture
def build(lp, trees, tmp_path):
    def built(new, *more):
        before, after = trees(OLD, new)
        return lp("build", "-o", tmp_path / "fix.livepatch", "--old", before, "--new", after, *more)

    return built


def test_the_report_lists_it_with_the_reason(build, tmp_path):
    done = build(ALIKE, "--report", tmp_path / "fix.html")
    assert (done.status, done.err) == (0, "")
    (row,) = [line for line in done.out.splitlines() if line.startswith("immediate")]
    assert "body; immediate: tasks stay in server.serve_forever() (old line 4)" in row
    assert "Without consistency, and only at completion unless it says otherwise: service.py:3\n" in done.out
    page = Page((tmp_path / "fix.html").read_text())
    assert "serve" in page.section("Not consistent")
    assert "a call that runs already ends in the old version" in page.section("Not consistent")
    assert "tasks stay in server.serve_forever()" in page.text
    (change,) = build(ALIKE, "--json").json["report"]["immediate"]
    assert (change["fate"], change["name"], change["consistent"]) == ("immediate", "serve", False)


def test_one_that_holds_the_transition_up_is_named_with_what_can_be_done(build, tmp_path):
    done = build(OTHERWISE, "--report", tmp_path / "fix.html")
    assert done.status == 0
    said = "service.py:3: tasks stay in server.serve_forever() (old line 4) and hold the transition up; "
    assert said in done.out
    assert "--immediate 'service:serve'" in done.out
    assert "--exclude 'service:serve'" in done.out
    assert "and hold the transition up" in Page((tmp_path / "fix.html").read_text()).text
    done = build(OTHERWISE, "--immediate", "service:serve")
    assert done.status == 0
    assert "body; immediate: on request" in done.out
    assert "hold the transition up" not in done.out


def test_a_name_that_is_none(build, tmp_path):
    done = build(OTHERWISE, "--immediate", "service:server")
    sentence = "'service:server' cannot be immediate: the patch exchanges the code of no function of that name."
    assert (done.status, done.err) == (1, f"livepatch: {sentence}\n")
    assert not (tmp_path / "fix.livepatch").exists()


def test_from_info_to_status(build, lp, trees, tmp_path):
    """The service goes on in the old `serve`, with the new `greet`; and ends in it, with the patch and after it."""
    assert build(ALIKE).status == 0
    archive = tmp_path / "fix.livepatch"
    shown = {line.split()[2]: line for line in lp("info", archive).out.splitlines() if line.startswith("service")}
    assert shown["greet"].split()[1] == "changed"
    assert shown["serve"].split()[1] == "immediate"
    assert "body; immediate: tasks stay in server.serve_forever()" in shown["serve"]
    functions = lp("info", archive, "--json").json["objects"][0]["functions"]
    assert [function["immediate"] for function in functions] == [False, True]

    with Target(SERVICE) as target:
        target.say(str(trees(OLD, ALIKE)[0]))
        assert target.hear() == "inside"
        done = lp("check", archive, "--pid", target.pid)
        assert (done.status, done.err) == (0, "")
        (row,) = [line for line in done.out.splitlines() if line.startswith("service  serve")]
        assert "active at once" in row
        assert "immediate: tasks stay in" in row
        assert "No task is in the way now." in done.out
        assert lp("load", archive, "--pid", target.pid).status == 0
        target.say("ask")
        assert target.hear() == "new"
        assert "service: greet,1, serve,1 (immediate)" in lp("status", "--pid", target.pid).out
        assert lp("disable", "fix", "--pid", target.pid).status == 0
        target.say("ask")
        assert target.hear() == "old"
        target.say("leave")
        assert target.hear() == "closed"


def test_of_a_patch_by_hand_it_is_listed_too(lp, service, tmp_path):
    hand = tmp_path / "hand.py"
    hand.write_text(
        "import livepatch as lp\n"
        "funcs = [lp.Func('answer', lambda: 'new'), lp.Func('slow', lambda: None, immediate=True)]\n"
        "__livepatch__ = lp.Patch('', [lp.Object(None, funcs)])\n"
    )
    done = lp("check", hand, "--pid", service.pid)
    assert [line.split()[1:] for line in done.out.splitlines() if line.startswith("__main__")] == [
        ["answer,1"],
        ["slow,1", "(immediate)"],
    ]
