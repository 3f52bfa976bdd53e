"""The rules of the house that no linter knows, as tests.

Those about the text of the checkout take its files as git sees them, so they need git; the others do not.
"""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from livepatch.attach import bundle

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "livepatch"
# These go into any process, as one zip: nothing but the standard library may be needed there.
TRAVELLING = ("core", "agent", "archive")
LONGEST_FILE = 600
LONGEST_TEST = 700  # a table of cases is long, and none the harder for it


def python_files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]


def checkout() -> list[Path]:
    """The text files of the checkout, committed or about to be."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def test_versions_of_python_are_told_apart_in_one_file():
    """A difference between Pythons is a named fact in core/cpython.py, see its docstring."""
    used = re.compile(r"\bversion_info\b|\bhexversion\b|\bpython_version_tuple\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in python_files(SOURCE)
        if path != SOURCE / "core" / "cpython.py"
        for number, line in enumerate(lines_of(path), 1)
        if used.search(line)
    ]
    assert not found


def test_files_fit_on_a_few_screens():
    for folder, limit in ((SOURCE, LONGEST_FILE), (ROOT / "tests", LONGEST_TEST)):
        lengths = {path.relative_to(ROOT): len(lines_of(path)) for path in python_files(folder)}
        assert not {path: length for path, length in lengths.items() if length > limit}


@pytest.mark.parametrize("package", [*TRAVELLING, "attach/arrival.py"])
def test_what_travels_imports_only_the_standard_library(package):
    """Also where an import hides in a function, which the import of the package does not show."""
    foreign = []
    for path in python_files(SOURCE / package):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                if name.partition(".")[0] not in {*sys.stdlib_module_names, "livepatch"}:
                    foreign.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not foreign


def test_all_that_travels_is_looked_at():
    assert {*bundle.TRAVELS} == {*TRAVELLING, "attach/arrival.py", "__init__.py", "public.py"}


def isolated(code: str, *arguments: str) -> str:
    """What CODE prints in a bare interpreter: no site-packages, no environment, no current folder."""
    command = [sys.executable, "-S", "-I", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_core_agent_and_archive_import_from_one_zip(tmp_path):
    carried = tmp_path / "livepatch.zip"
    files = [*SOURCE.glob("*.py"), *python_files(*(SOURCE / package for package in TRAVELLING))]
    with zipfile.ZipFile(carried, "w") as archive:
        for path in files:
            archive.write(path, path.relative_to(SOURCE.parent))
    modules = [
        path.relative_to(SOURCE.parent).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        for path in files
        if path.stem not in ("__main__", "testing")
    ]
    isolated(
        "import sys; sys.path.insert(0, sys.argv[1])\nfor name in sys.argv[2:]: __import__(name)",
        str(carried),
        *modules,
    )


def test_importing_livepatch_does_not_import_asyncio():
    """It costs 4 MB, and a program without a loop has no use for it."""
    printed = isolated(
        "import sys; sys.path.insert(0, sys.argv[1]); import livepatch; print([*sys.modules])",
        str(SOURCE.parent),
    )
    loaded = set(ast.literal_eval(printed))
    assert "livepatch.agent.process" in loaded
    assert not loaded & {"asyncio", "concurrent.futures", "multiprocessing", "uvloop", "trio", "greenlet"}


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"(?<![\w.})\]*])/(?:work|root|home|Users|opt)/\w", id="a path of one machine"),
        pytest.param(r"(?<![\w/])\.\./shared\b", id="a folder outside the checkout"),
        pytest.param(r"\b(?:pypi|pythonhosted|debian|ubuntu|npmjs)\.(?:org|com|net)\b", id="a host of a registry"),
    ],
)
def test_the_checkout_is_at_home_everywhere(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in checkout()
        if path != Path(__file__) and path.name != "LICENSE"
        for number, line in enumerate(lines_of(path), 1)
        if re.search(pattern, line)
    ]
    assert not found


@pytest.mark.parametrize("script", ["run", ".ci/run", "scripts/forky.sh", "scripts/arm64.sh"])
def test_scripts_are_executable(script):
    assert (ROOT / script).stat().st_mode & 0o111 == 0o111


def documented(pattern: str) -> list[str]:
    """Words that follow a command in the code of the README, each once."""
    return sorted(set(re.findall(pattern, (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)))


def test_readme_names_only_commands_of_run():
    names = documented(r"(?:^|[ `])\./run ([a-z]+)")
    known = re.findall(r"^    ([a-z]+)\) ", (ROOT / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"demo", "test"} <= set(names) <= set(known)


def test_readme_names_only_commands_of_livepatch():
    names = documented(r"(?:^ *(?:\$ )?|`)livepatch ([a-z]+)\b")
    start = "import sys; from livepatch.cli import main; sys.argv[0] = 'livepatch'; main()"
    assert names
    for name in names:
        command = [sys.executable, "-c", start, name, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"livepatch {name}: {done.stderr}"
