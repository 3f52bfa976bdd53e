"""What an archive finds in a process, function by function."""

import sys

import pytest
from tests.archive.kit import M, disabled, enabled, refusal

import livepatch as lp
from livepatch.archive import fit, format
from livepatch.archive.survey import ABSENT, DIFFERS, FITS, HELD, LATER, MISSING, NEW, survey

N = "lp_pkg/n.py"


def functions(archive):
    """The functions of the one module that is changed."""
    (module,) = survey(archive)["modules"]
    return {function["name"]: function for function in module["functions"]}


def only(archive):
    (function,) = functions(archive).values()
    return function


def test_what_fits_is_said_to(package):
    package.have({M: "class C:\n    def f(self): return 1\ndef g(): return 1"})
    archive = package.archive({M: "X = 1\nclass C:\n    def f(self): return 2\ndef g(): return X\ndef new(): pass"})
    m = package.load()
    found = survey(archive)
    assert found["releases"] == []
    (module,) = found["modules"]
    assert (module["name"], module["imported"], module["file"]) == ("lp_pkg.m", True, m.__file__)
    assert [(f["name"], f["state"], f["how"], f["patches"]) for f in module["functions"]] == [
        ("C.f", FITS, "", []),
        ("g", FITS, "", []),
    ]
    assert "new" in module["names"]["added"]
    assert m.g() == 1


@pytest.mark.parametrize(
    ("old", "live", "how"),
    [
        (
            "def f(a): return 1",
            "def f(a, *b, c=1, **d): return 1",
            "parameters are (a, c, *b, **d), and (a) are expected",
        ),
        ("def f(): return 1", "def f(): yield 1", "it is a generator, and a function is expected"),
        ("def f(): return len(())", "def f(): return max(())", "it uses max, lacks len"),
        ("def f(): return 'a'", "def f(): return 'b'", "it has the constant 'b', lacks 'a'"),
        ("def f(): return 1", "def f(): return lambda: eval('1')", "it uses eval, has the constant '1'"),
        ("def f(a, b): return a - b", "def f(a, b): return b - a", "its instructions are others"),
    ],
)
def test_how_a_function_differs(package, old, live, how):
    package.have({M: old})
    archive = package.archive({M: old.replace("return", "return None and")})
    package.have({M: "# moved\n\n" + live})
    m = package.load()
    found = only(archive)
    assert found["state"] == DIFFERS
    assert how in found["how"]
    assert (found["expected"], found["live"]) == (old, live)
    assert "not the one that the patch was built for" in refusal(fit.bind, archive, dry=True)
    assert m.f.__code__.co_filename == m.__file__


def test_all_that_do_not_fit_are_told_not_only_the_first(package):
    package.have({M: "def f(): return 1\ndef g(): return 1\ndef h(): return 1"})
    archive = package.archive({M: "def f(): return 2\ndef g(): return 2\ndef h(): return 2"})
    package.have({M: "def f(): return 2\ndef h(): return 1\ndef keep(): pass\nkeep.h = h\ndef h(): return 1"})
    package.load()
    found = functions(archive)
    assert {name: (f["state"], f["how"]) for name, f in found.items()} == {
        "f": (NEW, "it is what the patch would make of it"),
        "g": (MISSING, "there is no such function"),
        "h": (MISSING, "there are 2 of this name"),
    }


def test_source_that_is_not_what_runs_is_not_shown(package):
    """The file was replaced after it had been imported."""
    package.have({M: "def f(): return 1"})
    archive = package.archive({M: "def f(): return 2"})
    package.have({M: "def f(): return 3"})
    package.load()
    package.have({M: "def f(): return 4"})
    found = only(archive)
    assert (found["state"], found["live"], found["expected"]) == (DIFFERS, None, "def f(): return 1")
    assert "lacks 1" in found["how"] or "instructions" in found["how"]


def test_a_function_below_a_condition_may_be_absent_and_a_module_not_imported(package):
    old = "import sys\nif sys.argv is None:\n    def f(): return 1\ndef g(): return 1"
    package.have({M: old, N: "def f(): return 1"})
    archive = package.archive({M: old.replace("return 1", "return 2"), N: "def f(): return 2"})
    package.load()
    m, n = survey(archive)["modules"]
    assert [(f["name"], f["state"]) for f in m["functions"]] == [("f", ABSENT), ("g", FITS)]
    assert (n["imported"], n["file"], n["functions"][0]["state"]) == (False, "", LATER)
    assert "lp_pkg.n" not in sys.modules


def test_versions_of_other_patches(package):
    """Built on the one below it fits; built on the original it differs, unless it replaces them all."""
    package.have({M: "def f(): return 1"})
    first = package.archive({M: "def f(): return 2"}, "first")
    beside = package.archive({M: "def f(): return 3"}, "beside")
    everything = format.Archive(
        format.Manifest("all", replace=True, objects=beside.manifest.objects), beside.old, beside.new
    )
    package.load()
    patch = fit.bind(first)
    enabled(patch)
    package.have({M: "def f(): return 2"})
    upon = package.archive({M: "def f(): return 4"}, "upon")
    package.have({M: "def f(): return 1"})
    found = only(upon)
    assert (found["state"], found["patches"]) == (FITS, ["first"])
    found = only(beside)
    assert (found["state"], found["patches"]) == (DIFFERS, ["first"])
    assert found["how"] == "the patch 'first' has put its version in front of what is expected"
    found = only(everything)
    assert (found["state"], found["patches"]) == (FITS, ["first"])
    found = only(first)
    assert (found["state"], found["how"]) == (NEW, "it is what the patch would make of it, by the patch 'first'")
    disabled(patch)
    assert only(beside)["patches"] == []


def test_code_of_somebody_else(package):
    package.have({M: "def f(): return 1"})
    archive = package.archive({M: "def f(): return 2"})
    m = package.load()

    def other():
        return 7

    m.f.__code__ = other.__code__
    found = only(archive)
    assert found["state"] == HELD
    assert found["how"].startswith("somebody has put other code into it, 'test_code_of_somebody_else.<locals>.other'")


def test_what_does_not_compile_here_is_left_to_bind(package):
    package.have({M: "def f(): return 1"})
    archive = package.archive({M: "def f(): return 2"})
    package.load()
    broken = format.Archive(archive.manifest, archive.old, {M: b"def f(:"})
    assert survey(broken)["modules"] == []
    assert "cannot compile" in refusal(fit.bind, broken, dry=True)


@pytest.mark.parametrize("folder", ["Lp.Pkg-1.5.dist-info", "lp_pkg-1.5-py3.11.egg-info"])
def test_the_release_in_memory_and_the_one_on_disk(package, folder):
    package.have({M: "def f(): return 1", "lp_pkg/__init__.py": "__version__ = '1.4'"})
    archive = package.archive({M: "def f(): return 2"})
    package.load()
    release = {"name": "lp-pkg", "from": "1.4", "to": "1.5"}
    manifest = format.Manifest("fix", distributions=(release,), objects=archive.manifest.objects)
    told = format.Archive(manifest, archive.old, archive.new)
    assert survey(told)["releases"] == [{**release, "imported": None, "installed": None}]
    (package.old / folder).mkdir()
    assert survey(told)["releases"] == [{**release, "imported": "1.4", "installed": "1.5"}]


def test_the_log_of_a_process_that_is_only_looked_at_says_nothing(package):
    package.have({M: "def f(): return 1"})
    archive = package.archive({M: "def f(): return 2"})
    package.have({M: ""})
    package.load()
    before = lp.dmesg()
    assert only(archive)["state"] == MISSING
    assert lp.dmesg() == before
