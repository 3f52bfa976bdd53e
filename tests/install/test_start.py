"""A process that starts has the installed patches that fit it, before first use; and it starts, whatever they are."""

import os
import subprocess
import sys
import textwrap

import pytest
from tests.agent.targets import Target, eventually
from tests.trust.kit import NEW, OLD, ON_THIS_MACHINE, asked, needs_ssh

from livepatch.attach import prepare


def install(machine, file, number=1, folder=None):
    place = (folder or machine.data) / f"{number:04d}-{file.name}"
    place.write_bytes(file.read_bytes())
    return place


def run(machine, script, *arguments, **env):
    """A program as `livepatch run` starts it, in the folder of the modules."""
    program = machine.source / "program.py"
    program.write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, *arguments, program],
        env=prepare.environment({**os.environ, **machine.env, **env}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done


PROGRAM = """
    import shop, livepatch
    print(shop.price(), *[patch.name for patch in livepatch.patches()])
"""


def test_livepatch_run(machine):
    install(machine, machine.archive())
    done = run(machine, PROGRAM)
    assert (done.stdout, done.stderr) == ("new fix\n", "")


def test_start_agent(machine):
    install(machine, machine.archive(), folder=machine.var)
    with machine.service() as target:
        assert asked(target) == "new"


def test_modules_that_are_there_already(machine):
    """`start_agent()` late in the program: then it is a transition as any other."""
    install(machine, machine.archive())
    script = (
        ON_THIS_MACHINE
        + """
    sys.path.insert(0, os.environ["TEST_SOURCE"])
    import shop, livepatch as lp
    say(shop.price())
    lp.start_agent()
    say("started")
    while hear(): say(shop.price())
    """
    )
    with Target(script, env=machine.env) as target:
        assert target.hear() == "old"
        assert target.hear() == "started"
        eventually(lambda: asked(target) == "new")


def test_the_body_of_the_module_runs_the_new_code_already(machine):
    text = OLD + "FIRST = price()\n"
    machine.have(text)
    install(machine, machine.archive(old=text, new=text.replace("'old'", "'new'")))
    assert run(machine, "import shop; print(shop.FIRST)").stdout == "new\n"


def test_who_asks_nothing_of_it_pays_nothing(machine):
    install(machine, machine.archive())
    program = "import sys, livepatch; print('livepatch.archive.fit' in sys.modules, len(livepatch.patches()))"
    assert run(machine, program).stdout == "False 0\n"


def test_one_for_another_version_is_skipped(machine):
    install(machine, machine.archive())
    machine.have("def price():\n    return 'other'\n")
    done = run(machine, PROGRAM + "    print(*livepatch.dmesg())\n")
    assert done.stdout.startswith("other\nlivepatch: installed patch 'fix' is skipped, ")
    assert done.stdout.endswith("'price' in 'shop' is not the one that the patch was built for.\n")
    assert done.stderr == ""


def test_all_of_it_or_nothing(machine):
    """One of two modules is of another version. A naive one would patch the first, which is imported earlier."""
    install(machine, machine.archive_of("fix", {"shop": (OLD, NEW), "till": (OLD, NEW)}))
    machine.have("def price():\n    return 'other'\n", "till")
    done = run(machine, "import shop\nprint(shop.price())\nimport till\nprint(till.price())\n")
    assert (done.stdout, done.stderr) == ("old\nother\n", "")
    machine.have(OLD, "till")
    assert run(machine, "import shop\nprint(shop.price())\nimport till\nprint(till.price())\n").stdout == "new\nnew\n"


def test_one_that_turns_out_not_to_fit_gives_up_as_a_whole(machine):
    """What `till` has shows only when it is imported: by then `shop` has been patched."""
    new = NEW + "\ndef extra():\n    return 1\n"
    install(machine, machine.archive_of("fix", {"shop": (OLD, NEW), "till": (OLD, new)}))
    machine.have(OLD + "globals()['extra'] = 'taken'\n", "till")
    script = """
        import time, livepatch
        import shop
        print(shop.price())
        import till
        print(till.price(), till.extra)
        deadline = time.monotonic() + 30
        while livepatch.patches() and time.monotonic() < deadline:
            time.sleep(0.01)
        print(shop.price(), till.price())
        print(*livepatch.dmesg(), sep="\\n")
    """
    done = run(machine, script)
    assert done.stdout.splitlines()[:3] == ["new", "old taken", "old old"]
    assert "livepatch: patch 'fix' failed for module 'till', which is loaded without it: " in done.stdout
    assert "livepatch: 'fix': unpatching complete" in done.stdout


def test_a_function_that_the_body_does_not_define_here_is_left_out(machine):
    """As by a load: it stands below a condition. Which of two there will be is known when the body has run."""
    text = "import os\nif 'ODD' in os.environ:\n    def price(): return 'odd'\nelse:\n    def price(): return 'old'\n"
    machine.have(text)
    machine.have(OLD, "till")
    new = text.replace("'odd'", "'new'")
    install(machine, machine.archive_of("fix", {"till": (OLD, NEW), "shop": (text, new)}))
    program = "import till, shop\nprint(till.price(), shop.price())\n"
    assert run(machine, program).stdout == "new old\n"
    assert run(machine, program, ODD="1").stdout == "new new\n"


def test_without_the_leniency_the_import_would_fail(machine, lp):
    """What a patch does that an administrator has loaded: the kernel's rule, and not for a start."""
    new = NEW + "\ndef extra():\n    return 1\n"
    file = machine.archive_of("fix", {"shop": (OLD, NEW), "till": (OLD, new)})
    machine.have(OLD + "globals()['extra'] = 'taken'\n", "till")
    script = (
        ON_THIS_MACHINE
        + """
    sys.path.insert(0, os.environ["TEST_SOURCE"])
    import shop, livepatch as lp
    lp.start_agent()
    say("ready")
    hear()
    try:
        import till
    except ImportError: say("refused")
    hear()
    """
    )
    with Target(script, env=machine.env) as target:
        target.hear()
        assert lp("load", file, "--pid", target.pid).status == 0
        target.say()
        assert target.hear() == "refused"


def test_several_in_order_each_on_top_of_the_one_before(machine):
    newest = NEW.replace("new", "newest")
    install(machine, machine.archive("b"), 1)
    install(machine, machine.archive("a", old=NEW, new=newest), 2)
    assert run(machine, PROGRAM).stdout == "newest b a\n"


def test_in_the_wrong_order_the_second_is_skipped(machine):
    install(machine, machine.archive("a", old=NEW, new=NEW.replace("new", "newest")), 1)
    install(machine, machine.archive("b"), 2)
    assert run(machine, PROGRAM).stdout == "new b\n"


def test_a_cumulative_one_takes_the_place_of_those_before_it(machine):
    machine.have(OLD, "till")
    install(machine, machine.archive("first"), 1)
    install(machine, machine.archive("all", new=NEW.replace("new", "all"), replaces=True), 2)
    install(machine, machine.archive("later", module="till"), 3)
    # `till` is imported first: its patch must not be lost when the cumulative one comes.
    assert run(machine, "import till\nimport shop\n" + textwrap.dedent(PROGRAM)).stdout == "all all later\n"


def test_the_machines_come_before_the_users(machine):
    install(machine, machine.archive("fix"), 9, machine.var)
    install(machine, machine.archive("fix", new=NEW.replace("new", "other")), 1, machine.data)
    install(machine, machine.archive("more", old=NEW, new=NEW.replace("new", "newest")), 2, machine.data)
    with machine.service() as target:
        assert asked(target) == "newest"
        assert asked(target, "patches") == "fix more"
        assert "a patch named 'fix' is installed before it" in asked(target, "log")


BROKEN = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-30],
    "no zip": lambda data: b"#!/bin/sh\n",
    "a format to come": lambda data: data.replace(b'"format": 1', b'"format": 9'),
    "garbage": lambda data: os.urandom(1000),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_one_keeps_nothing_from_starting(machine, broken):
    place = install(machine, machine.archive("broken"), 1)
    place.write_bytes(BROKEN[broken](place.read_bytes()))
    install(machine, machine.archive("good"), 2)
    done = run(machine, PROGRAM)
    assert (done.returncode, done.stdout) == (0, "new good\n")
    assert done.stderr.startswith(f"installed patch {place} is left out: ")


@pytest.mark.parametrize("hooks", ["1 / 0", "import sys; sys.exit(3)", "import nothing_like_this"])
def test_hooks_that_fail_keep_nothing_from_starting(machine, hooks):
    text = f"import livepatch\n{hooks}\n__livepatch__ = {{'shop': livepatch.Callbacks()}}\n"
    install(machine, machine.archive(hooks=text.encode()))
    done = run(machine, PROGRAM)
    assert (done.returncode, done.stdout) == (0, "old\n")


def test_callbacks_that_refuse_keep_nothing_from_starting(machine):
    text = "import livepatch\ndef no(obj): raise ValueError('not today')\n"
    text += "__livepatch__ = {'shop': livepatch.Callbacks(pre_patch=no)}\n"
    install(machine, machine.archive(hooks=text.encode()))
    done = run(machine, "import shop\nprint(shop.price())\n")
    assert (done.returncode, done.stdout) == (0, "old\n")


def test_files_in_other_hands_are_left_out(machine):
    place = install(machine, machine.archive())
    place.chmod(0o666)
    done = run(machine, PROGRAM)
    assert done.stdout == "old\n"
    assert "can be written to by other users" in done.stderr
    place.chmod(0o644)
    machine.data.chmod(0o777)
    done = run(machine, PROGRAM)
    assert done.stdout == "old\n"
    assert f"{machine.data} can be written to by other users" in done.stderr


def test_children_and_forks_have_them(machine):
    install(machine, machine.archive())
    script = """
        import os, subprocess, sys
        if len(sys.argv) > 1:
            import shop
            print("spawned", shop.price(), flush=True)
            sys.exit()
        subprocess.run([sys.executable, __file__, "child"])
        if os.fork() == 0:
            import shop
            print("forked", shop.price(), flush=True)
            os._exit(0)
        os.wait()
    """
    done = run(machine, script, "-W", "ignore")
    assert (done.stdout, done.stderr) == ("spawned new\nforked new\n", "")


def test_while_a_transition_runs_it_waits_for_its_end(machine):
    install(machine, machine.archive())
    script = (
        ON_THIS_MACHINE
        + """
    sys.path.insert(0, os.environ["TEST_SOURCE"])
    import livepatch as lp
    inside, leave = threading.Event(), threading.Event()
    def slow():
        inside.set()
        leave.wait()
    lp.start_agent()
    thread = threading.Thread(target=slow)
    thread.start()
    inside.wait()
    def other(): pass
    lp.enable_patch(lp.Patch("running", [lp.Object(None, [lp.Func("slow", other)])]))
    import shop
    say(shop.price(), *[patch.name for patch in lp.patches()])
    leave.set()
    while hear(): say(shop.price())
    """
    )
    with Target(script, env=machine.env) as target:
        assert target.hear() == "old running"
        eventually(lambda: asked(target) == "new")


def test_an_import_that_waits_for_ours(machine):
    """The import system asks finders under a lock of all threads: who decides must not hold it, or waits in vain."""
    machine.have(OLD, "till")
    install(machine, machine.archive("one"), 1)
    install(machine, machine.archive("two", module="till"), 2)
    script = """
        import sys, threading
        from livepatch.core import cpython
        got, arrived, taken = {}, threading.Event(), threading.Event()
        class First:
            def find_spec(self, name, *_):
                if name == "till":
                    with cpython.without_finders_lock(): arrived.set(), taken.wait()
        def go(name): got[name] = __import__(name).price()
        sys.meta_path.insert(0, First())
        other = threading.Thread(target=go, args=("till",))
        other.start()
        arrived.wait()
        with cpython.finders_lock(): taken.set(), go("shop")
        other.join()
        print(got["shop"], got["till"])
    """
    for first, second in ("shop", "till"), ("till", "shop"):
        program = script.replace("shop", "SHOP").replace("till", second).replace("SHOP", first)
        assert run(machine, program).stdout.split() == ["new", "new"]


def test_threads_that_import_at_once(machine):
    machine.have(OLD, "till")
    install(machine, machine.archive("one"), 1)
    install(machine, machine.archive("two", module="till"), 2)
    script = """
        import sys, threading
        sys.setswitchinterval(2e-5)
        got, gate = [], threading.Barrier(8)
        def go(name):
            gate.wait()
            got.append(__import__(name).price())
        threads = [threading.Thread(target=go, args=(name,)) for name in ["shop", "till"] * 4]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(*got)
    """
    assert run(machine, script).stdout.split() == ["new"] * 8


def test_what_only_looks_for_a_module(machine):
    install(machine, machine.archive())
    script = """
        import importlib.util
        print(importlib.util.find_spec("shop").loader is not None)
        import shop
        print(shop.price(), type(shop.__loader__).__name__, shop.__spec__.loader is shop.__loader__)
    """
    assert run(machine, script).stdout == "True\nnew SourceFileLoader True\n"


def test_an_agent_that_applies_nothing(machine):
    """As an attach brings it: who only wants to look at a process does not change it."""
    install(machine, machine.archive())
    script = (
        ON_THIS_MACHINE
        + """
    sys.path.insert(0, os.environ["TEST_SOURCE"])
    import shop, livepatch as lp
    lp.start_agent(installed=False)
    say(shop.price(), len(lp.patches()))
    """
    )
    with Target(script, env=machine.env) as target:
        assert target.hear() == "old 0"


@needs_ssh
def test_strict_mode(machine, lp, key, other_key):
    unsigned, signed, other = machine.archive("unsigned"), machine.archive("signed"), machine.archive("other")
    lp("sign", signed, "--key", key.path), lp("sign", other, "--key", other_key.path)
    install(machine, unsigned, 1), install(machine, other, 2), install(machine, signed, 3)
    machine.strict(machine.config, key.line())
    done = run(machine, PROGRAM)
    assert (done.returncode, done.stdout) == (0, "new signed\n")
    assert "'unsigned' is skipped" in done.stderr
    assert "'other' is skipped" in done.stderr


@needs_ssh
def test_strict_mode_may_keep_a_process_from_starting(machine, lp, key):
    place = install(machine, machine.archive())
    machine.strict(machine.config, key.line(), refuse_start=True)
    done = run(machine, PROGRAM)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"livepatch: The installed patch {place} is not usable: ")
    assert done.stderr.count("\n") == 1
    lp("sign", place, "--key", key.path)
    assert run(machine, PROGRAM).stdout == "new fix\n"
    machine.have("def price():\n    return 'other'\n")  # one for another version is none that is broken
    assert run(machine, PROGRAM).stdout == "other\n"
    place.write_bytes(b"broken")
    assert run(machine, PROGRAM).returncode == 78
    script = (
        ON_THIS_MACHINE
        + """
    import livepatch as lp
    try: lp.start_agent()
    except lp.LivepatchError as error: say(error)
    """
    )
    with Target(script, env=machine.env) as target:
        assert target.hear().startswith(f"The installed patch {place} is not usable: ")


def test_rules_that_cannot_be_understood_let_nothing_in_and_everything_start(machine):
    install(machine, machine.archive())
    (machine.config / "config.toml").write_text("refuse_start = what\n")
    done = run(machine, PROGRAM)
    assert (done.returncode, done.stdout) == (0, "old\n")
    assert "config.toml is not TOML, so that nothing is let in" in done.stderr


def test_the_patches_do_not_need_the_socket(machine):
    """The fix does not depend on the administrator's way in."""
    install(machine, machine.archive())
    script = (
        ON_THIS_MACHINE
        + """
    sys.path.insert(0, os.environ["TEST_SOURCE"])
    import livepatch as lp
    from livepatch.agent import places
    places.directory_of = lambda uid, base: "/proc/nowhere"
    try: lp.start_agent()
    except lp.LivepatchError: say("no socket")
    import shop
    say(shop.price())
    """
    )
    with Target(script, env=machine.env) as target:
        assert target.hear() == "no socket"
        assert target.hear() == "new"
