"""What was signed for one purpose, one release or one moment, brought in for another."""

import pytest
from tests.agent.targets import Target
from tests.trust.kit import NEW, OLD, ON_THIS_MACHINE, asked, needs_ssh
from tests.trust.test_strict import sent

from livepatch.archive.versions import is_older
from livepatch.attach.client import Client
from livepatch.build import from_step, steps

pytestmark = [needs_ssh, pytest.mark.once]


@pytest.fixture
def strict(machine, key):
    machine.strict(machine.etc, key.line())
    return machine


@pytest.fixture
def sign(lp, key):
    def signed(file):
        assert lp("sign", file, "--key", key.path).status == 0
        return file

    return signed


def said(reply):
    return reply["error"]["data"]["sentence"]


def test_for_another_release(strict, sign):
    """The signature is good, and what is there is not what the patch was built for."""
    file = sign(strict.archive())
    strict.have("def price():\n    return 'other'\n")
    with strict.service() as target:
        assert asked(target) == "other"
        assert "is not the one that the patch was built for" in said(sent(target, file))
        assert asked(target) == "other"


def test_for_another_package(strict, sign):
    file = sign(strict.archive(module="till"))
    with strict.service() as target:
        asked(target)
        assert "None of the modules that the patch changes is imported here: till" in said(sent(target, file))


def test_under_another_name(strict, sign):
    """What the file is called is not signed, and plays no role: not for the name, and not for what is replaced."""
    file = sign(strict.archive("fix"))
    renamed = file.rename(strict.root / "other.livepatch")
    with strict.service() as target:
        asked(target)
        assert sent(target, renamed)["result"]["name"] == "fix"
        assert "error" in sent(target, renamed.rename(strict.root / "third.livepatch"))
        assert asked(target, "patches") == "fix"


def test_under_a_name_that_has_it_executed(strict, sign):
    """A file that ends in .py is Python written by hand: an archive is none, whatever it is called."""
    file = sign(strict.archive("fix")).rename(strict.root / "fix.py")
    with strict.service() as target:
        asked(target)
        assert sent(target, file)["result"]["name"] == "fix"


def test_python_that_begins_like_an_archive(strict):
    """PK could be the first two letters of a program, and is no way around the signature."""
    file = strict.root / "fix.py"
    file.write_text("PK = 1\n")
    with strict.service() as target:
        asked(target)
        assert "not a valid patch archive" in said(sent(target, file))


def test_what_is_loaded_already(strict, sign):
    file = sign(strict.archive())
    with strict.service() as target:
        asked(target)
        assert "result" in sent(target, file)
        assert "is loaded already" in said(sent(target, file))
        assert asked(target, "patches") == "fix"


def release(machine, name, to, text, old=OLD, **options):
    """An archive that says which release it makes."""
    from dataclasses import replace

    trees = machine.root / "releases" / name
    for version, source in (("old", old), ("new", text)):
        (trees / version).mkdir(parents=True)
        (trees / version / "shop.py").write_text(source)
    step = steps.trees(trees / "old", trees / "new")
    step = replace(step, distributions=({"name": "shop", "from": "1.0", "to": to},))
    file = machine.root / f"{name}.livepatch"
    file.write_bytes(from_step(step).archive(name, **options))
    return file


@pytest.mark.parametrize(("newer", "older"), [("1.10", "1.9"), ("2.0", "2.0rc1"), ("1!1", "2.0"), ("1.0.post1", "1.0")])
def test_a_downgrade(machine, newer, older):
    """An older cumulative patch would take the place of a newer one without anybody noticing."""
    with machine.service() as target:
        asked(target)
        one = release(machine, "newer", newer, NEW.replace("new", "newest"))
        two = release(machine, "older", older, NEW, replaces=True)
        assert "result" in sent(target, one)
        assert said(sent(target, two)) == (
            f"'older' makes shop {older}, and 'newer', whose place it would take, makes it {newer}; if that is meant,"
            " disable 'newer' first."
        )
        assert asked(target) == "newest"
        with Client(target.pid) as client:
            client.call("write_enabled", name="newer", value="0")
        assert "result" in sent(target, two)
        assert asked(target) == "new"


def test_a_refused_patch_is_no_way_around_that(machine):
    """One of the same name, for an older release, which is refused because of its name."""
    with machine.service() as target:
        asked(target)
        newer = release(machine, "newer", "1.10", NEW.replace("new", "newest"))
        assert "result" in sent(target, newer)
        (machine.root / "releases" / "newer").rename(machine.root / "releases" / "before")
        older = release(machine, "newer", "0.1", NEW, old=NEW.replace("new", "newest"))
        assert "is loaded already" in said(sent(target, older))
        assert "whose place it would take" in said(sent(target, release(machine, "o", "1.9", NEW, replaces=True)))


@pytest.mark.parametrize("to", ["1.11", "1.10", "2.0", "unknown"])
def test_an_upgrade(machine, to):
    with machine.service() as target:
        asked(target)
        assert "result" in sent(target, release(machine, "one", "1.10", NEW.replace("new", "newer")))
        assert "result" in sent(target, release(machine, "two", to, NEW, replaces=True))
        assert asked(target) == "new"


def test_the_order_of_versions():
    """By PEP 440, as `packaging` has it, which is not there in a patched process."""
    from itertools import product

    from packaging.version import Version

    known = [
        "1.0.dev1",
        "1.0a1.dev2",
        "1.0a1",
        "1.0a2",
        "1.0b1",
        "1.0rc1",
        "1.0",
        "1",
        "1.0.0",
        "1.0+local",
        "1.0.post0",
    ]
    known += ["1.0.post1.dev1", "1.0.post1", "1.0-2", "1.0.1", "v1.1", "1.9", "1.10", "2024.1", "1!0.1", "1.0-alpha.3"]
    for one, other in product(known, repeat=2):
        expected = Version(one.partition("+")[0]) < Version(other.partition("+")[0])
        assert is_older(one, other) == expected, (one, other)
    for odd in ("", "x", "1.0 2", "1..2", "1.0-final-2"):
        assert not is_older(odd, "1.0")
        assert not is_older("1.0", odd)


def test_a_signature_says_nothing_about_the_process(strict, sign):
    """It is good in every process whose rules allow its signer; one key for each service tells them apart."""
    file = sign(strict.archive())
    script = (
        ON_THIS_MACHINE
        + """
    sys.path.insert(0, os.environ["TEST_SOURCE"])
    import shop, livepatch as lp
    lp.start_agent()
    say("ready")
    while hear(): say(shop.price())
    """
    )
    with Target(script, env=strict.env) as one, Target(script, env=strict.env) as other:
        for target in (one, other):
            target.hear()
            assert "result" in sent(target, file)
            assert asked(target) == "new"
