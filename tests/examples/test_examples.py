"""Each example, from load to unload, in the process that it is for."""

import re
from pathlib import Path

from tests.examples.conftest import EXAMPLES


def test_simple(start, gone):
    greeter, livepatch = start("simple/greeter.py")
    assert greeter.ask("Ann") == "Good morning, Ann"
    assert "1 function patched" in livepatch("load", "evening.py")
    assert greeter.ask("Ann") == "Good evening, Ann"
    livepatch("disable", "evening")
    assert greeter.ask("Ann") == "Good morning, Ann"
    livepatch("unload", "evening")
    gone(livepatch)


def test_callbacks(start, gone):
    desk, livepatch = start("callbacks/desk.py")
    assert desk.ask("5") == "5"  # 5.35
    assert desk.ask("8") == "8"  # 8.56: wrong, and in the cache
    assert "report not imported yet" in livepatch("load", "rounding.py")
    assert [desk.hear() for _ in range(2)] == ["pre_patch prices (LIVE)", "post_patch prices (LIVE)"]
    assert desk.ask("8") == "9"
    assert desk.ask("report") == "pre_patch report (COMING)"
    assert [desk.hear() for _ in range(2)] == ["post_patch report (COMING)", "Prices, rounded"]
    livepatch("disable", "rounding")
    said = [desk.hear() for _ in range(4)]
    assert said == [
        f"{event} {name} (LIVE)" for event in ("pre_unpatch", "post_unpatch") for name in ("prices", "report")
    ]
    assert (desk.ask("8"), desk.ask("report")) == ("8", "Prices, rounded down")
    livepatch("unload", "rounding")
    gone(livepatch)


def test_callbacks_refuse(start, gone):
    desk, livepatch = start("callbacks/desk.py", "19")
    said = livepatch("load", "rounding.py", status=1)
    assert "The pre-patch callback for 'prices' refused: Numerical argument out of domain." in said
    assert desk.hear() == "pre_patch prices (LIVE)"
    assert desk.ask("8") == "9"  # 9.52
    gone(livepatch)


def test_shadow(start, gone):
    lounge, livepatch = start("shadow/lounge.py")
    for name in ("Ann", "Bob", "Cid"):
        lounge.ask(f"arrive {name}")
    assert lounge.ask("leave Ann") == "Ann leaves"
    assert lounge.ask("seats") == "3"  # one of them for nobody
    livepatch("load", "give_back.py")
    lounge.ask("arrive Dan")
    lounge.ask("arrive Eve")
    assert lounge.ask("seats") == "5"
    assert lounge.ask("leave Dan") == "Dan leaves"
    assert lounge.ask("leave Bob") == "Bob leaves"  # came before the patch
    assert lounge.ask("seats") == "4"
    livepatch("load", "bill.py")
    assert [lounge.ask(f"serve {name}") for name in ("Cid", "Eve", "Eve")] == [
        "drink 1 for Cid",
        "drink 1 for Eve",
        "drink 2 for Eve",
    ]
    lounge.ask("arrive Fay")
    assert lounge.ask("leave Eve") == "Eve pays for 2 and leaves"
    assert lounge.ask("leave Fay") == "Fay pays for 0 and leaves"
    assert lounge.ask("seats") == "3"
    lounge.ask("arrive Gus")
    livepatch("disable", "bill")
    assert lounge.ask("serve Cid") == "a drink for Cid"
    assert lounge.ask("leave Gus") == "Gus leaves"  # his seat outlived the second patch
    assert lounge.ask("seats") == "3"
    livepatch("disable", "give_back")
    lounge.ask("arrive Hal")
    lounge.ask("leave Hal")
    assert lounge.ask("seats") == "4"  # it leaks again
    livepatch("unload", "bill")
    livepatch("unload", "give_back")
    gone(livepatch)


def test_cumulative(start, gone):
    doorman, livepatch = start("cumulative/doorman.py")
    livepatch("load", "politer.py")
    assert (doorman.ask("in Ann"), doorman.ask("out Ann")) == ("Good day, Ann", "Farewell, Ann")
    livepatch("load", "warmer.py")
    assert (doorman.ask("in Ann"), doorman.ask("out Ann")) == ("Welcome, Ann", "goodbye Ann")
    livepatch("unload", "politer")  # replaced is as good as disabled
    livepatch("load", "politer.py")  # an ordinary one goes on top
    assert (doorman.ask("in Ann"), doorman.ask("out Ann")) == ("Good day, Ann", "Farewell, Ann")
    livepatch("disable", "politer", "--unload")
    livepatch("disable", "warmer", "--unload")
    assert (doorman.ask("in Ann"), doorman.ask("out Ann")) == ("hello Ann", "goodbye Ann")
    gone(livepatch)


def test_states(start, gone):
    office, livepatch = start("states/office.py")
    assert [office.ask("sell") for _ in range(3)] == ["ticket 1", "ticket 2", "sold out at 2"]
    livepatch("load", "four.py")
    assert [office.ask("sell") for _ in range(3)] == ["ticket 3", "ticket 4", "sold out at 4"]
    livepatch("load", "six.py")
    assert [office.ask("sell") for _ in range(3)] == ["ticket 5", "ticket 6", "sold out at 6"]
    livepatch("unload", "four")
    assert "is not compatible" in livepatch("load", "four.py", status=1)
    livepatch("disable", "six")
    assert office.ask("sell") == "sold out at 2"  # what it was before the first of them
    livepatch("unload", "six")
    livepatch("load", "six.py")  # this time there is nothing to take over
    assert office.ask("sell") == "sold out at 6"
    livepatch("disable", "six", "--unload")
    assert office.ask("sell") == "sold out at 2"
    gone(livepatch)


def test_the_readme_knows_every_file():
    readme = (EXAMPLES / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|", readme, re.MULTILINE)
    named = {f"{folder}/{file}" for folder, *files in rows for file in re.findall(r"`(\w+\.py)`", "".join(files))}
    there = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert named <= there
    assert there - named == {"callbacks/prices.py", "callbacks/report.py"}
    tested = Path(__file__).read_text()
    for path in sorted(named):
        assert path in tested or f'"{path.partition("/")[2]}"' in tested
    for command in re.findall(r"^    livepatch .*?(\S+/\S+\.py)", readme, re.MULTILINE):
        assert command in there
