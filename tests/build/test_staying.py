"""Functions that tasks never leave: which are immediate by themselves, and what is said of the others."""

import textwrap

import pytest
from tests.build.kit import files

from livepatch.build import from_step
from livepatch.build.sources import Tree
from livepatch.build.steps import Step
from livepatch.core.model import LivepatchError

#: A server with a loop, and others in its package. What stands for `{run}` is the function in question.
PACKAGE = """
    import asyncio, logging
    from contextlib import suppress
    from pkg.other import helper as assist
    log = logging.getLogger("pkg")
    LIMIT = {limit}

    def stop_all(*args): return {number}
    def unchanged(*args): return 1
    class Plugin:
        def __init__(self): self.x = {number}
    class Server:
        {attribute}
        def _create(self): return {number}
        def halt(self): return {number}
        def resized(self{parameter}): return {number}
        def keep(self): return 1
        def __len__(self): return {length}
        def __exit__(self, *args): return {exits}
        def run(self, ready=None):
    {run}
"""
OLD = {"limit": 1, "number": 1, "attribute": "", "parameter": "", "length": 1, "exits": None}
NEW = {**OLD, "limit": 2, "number": 2, "attribute": "added = None", "parameter": ", size"}


def text(values, run):
    head, _, _ = textwrap.dedent(PACKAGE).lstrip().partition("{run}")
    return head.rstrip(" ").format(**values) + textwrap.indent(textwrap.dedent(run).strip("\n"), " " * 8) + "\n"


def built(old, new, before=OLD, after=NEW):
    trees = [
        files({"pkg/m.py": text(values, run), "pkg/other.py": f"def helper(): return {values['number']}"})
        for values, run in ((before, old), (after, new))
    ]
    return from_step(Step(*map(Tree.sort, trees)))


def found(old, new, **more):
    (change,) = [c for c in built(old, new, **more).report.changes if c.name == "Server.run" and c.fate != "note"]
    return change


STARTS = "self.coro = self._create()\nself.server = self.loop.run_until_complete(self.coro)\n"
SERVES = "self.loop.run_forever()\n"
TRIES = "try:\n    self.loop.run_forever()\nfinally:\n"
CLOSES = "self.server.close()\nself.loop.run_until_complete(self.server.wait_closed())\nself.loop.close()\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (STARTS + SERVES + CLOSES, STARTS + SERVES + "assert self.server is not None\n" + CLOSES),
        (STARTS + SERVES + CLOSES, STARTS + SERVES + "log.debug('done')\n" + CLOSES),
        (STARTS + SERVES + CLOSES, STARTS + "self.log.info('%s', self)\n" + SERVES + CLOSES),
        (STARTS + SERVES, STARTS + SERVES + CLOSES),
        (STARTS + SERVES + CLOSES, STARTS + SERVES + "if self.server:\n    self.server.close()\n"),
        ("x = self._create()\nself.y = x\n" + SERVES, "self.y = self._create()\n" + SERVES),
        ("x: int = self._create()\nself.y = x\n" + SERVES, "self.y = self._create()\n" + SERVES),
        (TRIES + "    self.loop.close()", TRIES + "    pass"),
        ("with suppress(OSError):\n    " + SERVES, "assert ready\nwith suppress(OSError):\n    " + SERVES),
        ("self.added = 1\n" + SERVES, "self.added = 1\nassert ready\n" + SERVES),
        ("self.server.serve_forever()", "assert ready\nself.server.serve_forever()"),
        ("asyncio.run(self.server.serve_forever())", "assert ready\nasyncio.run(self.server.serve_forever())"),
        ("stop_all(LIMITS)\n" + SERVES, "stop_all(LIMITS)\nassert ready\n" + SERVES),
    ],
)  # fmt: skip
def test_what_does_the_same_is_immediate(old, new):
    change = found(old, new)
    assert (change.fate, change.hint) == ("immediate", "")
    assert change.entry.immediate
    assert change.is_consistent is False
    assert change.reason.startswith("body; immediate: tasks stay in ")
    assert change.reason == change.entry.reason


#: What the old frame goes on to do, and what is said of that.
REMAINDERS = [
    ("self.halt()", "what it does after that call uses halt, which changes"),
    ("stop_all()", "what it does after that call uses stop_all, which changes"),
    ("assist()", "what it does after that call uses assist, which changes"),
    ("unchanged(self.halt)", "what it does after that call uses halt, which changes"),
    ("self.size = LIMIT", "what it does after that call uses LIMIT, which changes"),
    ("self.added = 1", "what it does after that call uses added, which changes"),
    ("x = Plugin()", "what it does after that call uses Plugin, which changes"),
    ("self.resized()", "what it does after that call uses resized, which changes"),
    ("getattr(self, 'ha' + 'lt')()", "what it does after that call uses getattr, which may get at anything"),
]


@pytest.mark.parametrize(("remainder", "why"), REMAINDERS)
@pytest.mark.parametrize(
    "around",
    ["{serves}{rest}", "try:\n    {serves}finally:\n    {rest}", "try:\n    {serves}except OSError:\n    {rest}"],
)
def test_an_old_frame_that_goes_on_with_what_changes_holds_the_transition_up(remainder, why, around):
    old = around.format(serves=SERVES, rest=remainder)
    change = found(old, "assert ready\n" + old)
    assert change.fate == "carried"
    assert not change.entry.immediate
    assert change.is_consistent
    line = text(OLD, old).partition("run_forever")[0].count("\n") + 1
    said = f"tasks stay in self.loop.run_forever() (old line {line})"
    assert change.hint.startswith(f"{said} and hold the transition up; it is not immediate by itself, since {why}")
    key = "'pkg.m:Server.run'"
    assert change.hint.endswith(f": --immediate {key} says that it may be all the same, --exclude {key} leaves it out")


@pytest.mark.parametrize(
    ("rest", "around", "called"),
    [
        ("for x in self.items: x.keep()", "{}", "__len__"),
        ("if self: self.keep()", "{}", "__len__"),
        ("print(self)", "{}", "__len__"),
        ("self.items[1].keep()", "{}", "__len__"),
        ("self.keep()", "with self:\n    {}", "__exit__"),
        ("self.keep()", "{}", None),
        ("assert self.x is not None", "{}", None),
        ("self.keep()", "with suppress(OSError):\n    {}", "__exit__"),
    ],
)
def test_what_is_called_without_being_named(rest, around, called):
    old = around.format(SERVES) + rest
    change = found(old, "assert ready is None\n" + old, after={**NEW, "length": 2, "exits": 1})
    assert change.hint.partition("after that call ")[2].partition(", ")[0] == (f"may call {called}" if called else "")


def test_what_it_has_kept_for_afterwards_counts():
    old = "stop = self.halt\nlater = stop\n" + SERVES + "later()"
    assert "uses halt, which changes" in found(old, "assert ready\n" + old).hint
    alias = "self.last = self.halt\n" + SERVES + "self.last()"
    assert "uses last, which changes" in found(alias, "assert ready\n" + alias).hint
    with_context = "with assist() as x:\n    self.loop.run_forever()"
    assert "uses assist, which changes" in found(with_context, "assert ready\n" + with_context).hint
    handler = "try:\n    self.loop.run_forever()\nexcept Plugin:\n    pass"
    assert "uses Plugin, which changes" in found(handler, "assert ready\n" + handler).hint


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        # Whatever it leaves behind may reach what changes on ways that no name tells.
        (SERVES, "self.mode = 'b'\n" + SERVES, "its two versions do not do the same"),
        (SERVES, "self.configure(1)\n" + SERVES, "its two versions do not do the same"),
        ("self.mode = 1\n" + SERVES, SERVES, "its two versions do not do the same"),
        ("x = self._create()\n" + SERVES, "x, y = self._create()\n" + SERVES, "its two versions do not do the same"),
        (SERVES, "if unchanged():\n    return\n" + SERVES, "its two versions do not do the same"),
        (SERVES, SERVES + "self.keep()", "its two versions do not do the same"),
        (SERVES, "self.server.close()\n" + SERVES, "its two versions do not do the same"),
        (SERVES, "assert self.check()\n" + SERVES, "its two versions do not do the same"),
        (SERVES, "log.debug(self.halt)\n" + SERVES, "its two versions do not do the same"),
        ("x = f()\nself.y = x\nf(x)\n" + SERVES, "self.y = f()\nf(x)\n" + SERVES, "do not do the same"),
        (STARTS + SERVES, STARTS + "self.loop.run_forever(1)", "its two versions do not do the same"),
        # One code for both worlds.
        ("f(LIMIT)\n" + SERVES, "f(LIMIT)\nassert ready\n" + SERVES, "it uses LIMIT, of which more changes"),
        ("self.resized()\n" + SERVES, "self.resized()\nassert ready\n" + SERVES, "it uses resized, of which more"),
        ("self.added\n" + SERVES, "self.added\nassert ready\n" + SERVES, "it uses added, of which more"),
        # What is not simple.
        ("while True:\n    " + SERVES, "while True:\n    " + SERVES + "    assert ready", "a loop"),
        ("if ready:\n    self.loop.run_forever()", "assert 1\nif ready:\n    self.loop.run_forever()", "a condition"),
        (SERVES * 2, SERVES + "assert ready\n" + SERVES, "that call is not there exactly once"),
        ("self.serve()", SERVES, "that call is not there exactly once"),
        (SERVES + "yield", "assert ready\n" + SERVES + "yield", "it is a generator"),
    ],
)  # fmt: skip
def test_when_in_doubt_it_stays_consistent(old, new, why):
    change = found(old, new)
    assert change.fate == "carried"
    assert why in change.hint


@pytest.mark.parametrize("attribute", ["added = list()", "added = property(lambda self: 1)"])
def test_what_is_set_must_be_a_plain_attribute(attribute):
    old = "self.added = 1\n" + SERVES
    change = found(old, "assert ready\n" + old, after={**NEW, "attribute": attribute})
    assert "it uses added, of which more" in change.hint


def test_a_signature_that_changes_and_what_is_no_call_of_it():
    old, new = (files({"pkg/m.py": f"def f({given}): a.run_forever()"}) for given in ("a", "a, b=1"))
    (change,) = from_step(Step(Tree.sort(old), Tree.sort(new))).report.changes
    assert "it is exchanged for more than its body (signature" in change.hint
    assert found("f(self.loop.run_forever)", "assert ready\nf(self.loop.run_forever)").hint == ""
    assert found("def run_forever(): pass", "assert ready\ndef run_forever(): pass").hint == ""


def test_coroutines():
    text = "async def f(s):\n    async with s:\n        await s.serve_forever()\n"
    old, new = files({"m.py": text}), files({"m.py": text.replace("    async", "    assert s\n    async")})
    assert [c.name for c in from_step(Step(Tree.sort(old), Tree.sort(new))).report.immediate] == ["f"]


def test_one_that_reads_a_value_and_has_not_changed_itself():
    old, new = (
        files({"m.py": "N = 1\ndef f(s): s.serve_forever(N)"}),
        files({"m.py": "N = 2\ndef f(s): s.serve_forever(N)"}),
    )
    (reader,) = from_step(Step(Tree.sort(old), Tree.sort(new))).report.functions
    assert "it is exchanged for more than its body (reads N)" in reader.hint


# -- on request ------------------------------------------------------------------------------------------------------


def test_on_request():
    old = SERVES + "self.halt()"
    build = built(old, "self.x = 1\n" + old)
    made = build.at_once(["pkg.m:Server.run"])
    (change,) = made.report.immediate
    assert (change.name, change.hint, change.reason) == ("Server.run", "", "body; immediate: on request")
    assert build.report.immediate == []
    assert change in made.report.not_consistent
    assert {c.name for c in build.at_once(["pkg.m"]).report.immediate} >= {"Server.run", "Server.halt", "stop_all"}
    assert build.at_once([]) == build


def test_what_is_found_by_itself_keeps_its_reason():
    build = built(SERVES, "assert ready\n" + SERVES)
    assert build.at_once(["*:Server.run"]).report.immediate == build.report.immediate


@pytest.mark.parametrize("name", ["pkg.m:Server.nothing", "pkg.m:LIMIT", "pkg.m:Server.keep", "pkg.m:Server.added"])
def test_a_name_that_is_no_function_of_the_patch(name):
    with pytest.raises(LivepatchError) as caught:
        built(SERVES, "self.x = 1\n" + SERVES).at_once(["pkg.m:Server.run", name])
    sentence = f"'{name}' cannot be immediate: the patch exchanges the code of no function of that name."
    assert str(caught.value) == sentence


def test_one_that_is_left_out_cannot_be_immediate():
    build = built(SERVES, "self.x = 1\n" + SERVES).narrowed(exclude=["pkg.m:Server.run"])
    with pytest.raises(LivepatchError):
        build.at_once(["pkg.m:Server.run"])


def test_nested_functions_go_with_what_is_around_them():
    old = "def f(q):\n    def g(): return 1\n    q.append(g)\n    q.serve_forever()\n"
    step = Step(Tree.sort(files({"m.py": old})), Tree.sort(files({"m.py": old.replace("1", "2")})))
    build = from_step(step)
    assert [c.name for c in build.report.functions] == ["f", "f.<locals>.g"]
    assert [c.name for c in build.at_once(["m:f"]).report.immediate] == ["f", "f.<locals>.g"]
    assert [c.name for c in build.at_once(["m:f.<locals>.g"]).report.immediate] == ["f.<locals>.g"]


# -- cumulative patches ----------------------------------------------------------------------------------------------


def test_versions_in_between_may_be_running_as_well():
    from livepatch.archive import format

    def step(old, new):
        return Step(*(Tree.sort(files({"m.py": f"def f(s):\n{textwrap.indent(body, '    ')}"})) for body in (old, new)))

    one, two, three = "s.serve_forever()\n", "s.serve_forever()\ns.keep()\n", "assert s\ns.serve_forever()\n"
    base = [format.read(from_step(step(one, two)).archive("fix"))]
    (change,) = from_step(step(two, three), base).report.changes
    assert "its two versions do not do the same" in change.hint, "one and three do, but two may be running"
    base = [format.read(from_step(step(one, three)).archive("fix"))]
    (change,) = from_step(step(three, three + "s.close()\n"), base).report.changes
    assert change.fate == "immediate"
