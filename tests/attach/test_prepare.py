"""`livepatch run` prepares every Python below the command, and nothing else changes for the program."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from livepatch.attach import prepare

#: The interpreter outside of any virtual environment: it has no livepatch.
PLAIN = getattr(sys, "_base_executable", sys.executable)

REPORT = """
import os, sys
agent = os.path.exists(f"/tmp/livepatch-{os.geteuid()}/{os.getpid()}.sock")
site = [entry for entry in sys.path if os.path.basename(entry) == "site"]
print("agent" if agent else "none", len(site), getattr(sys.modules.get("sitecustomize"), "MARK", "-"))
"""


def run(*command, **env):
    """Run a command as `livepatch run` does."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        command, env=prepare.environment({**clean, **env}), capture_output=True, text=True, timeout=60
    )


def older_pythons():
    """Those on this machine that livepatch does not support, if any."""
    names = ["python2.7", *(f"python3.{minor}" for minor in range(6, 11))]
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    found = [path for root in roots for name in names for path in root.glob(f"*/bin/{name}")]
    return sorted({str(path) for path in found} | {path for name in names if (path := shutil.which(name))})


def test_a_python_without_livepatch_gets_an_agent():
    done = run(PLAIN, "-c", REPORT)
    assert (done.stdout, done.stderr) == ("agent 0 -\n", "")


def test_only_livepatch_becomes_importable():
    program = "import sys; print(sys.path); import livepatch; print(len(livepatch.__path__))"
    plain = subprocess.run(
        [PLAIN, "-c", "import sys; print(sys.path)"], env={}, capture_output=True, text=True, timeout=60
    )
    assert run(PLAIN, "-c", program).stdout == plain.stdout + "1\n"


def test_an_environment_with_livepatch_uses_its_own():
    done = run(sys.executable, "-c", REPORT)
    assert (done.stdout, done.stderr) == ("agent 0 -\n", "")


def test_children_get_one_too():
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {REPORT!r}])"
    assert run("sh", "-c", f'"{PLAIN}" -c "$PROGRAM"', PROGRAM=child).stdout == "agent 0 -\n"


def test_the_sitecustomize_of_the_user_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("MARK = __file__\nprint(__name__)\n")
    done = run(PLAIN, "-c", REPORT, PYTHONPATH=str(tmp_path))
    assert done.stdout == f"sitecustomize\nagent 0 {tmp_path}/sitecustomize.py\n"
    assert done.stderr == ""


def test_an_error_in_it_is_reported_as_ever(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("1 / 0\n")
    plain = subprocess.run(
        [PLAIN, "-c", "print('on')"], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    done = run(PLAIN, "-c", "print('on')", PYTHONPATH=str(tmp_path))
    assert (done.stdout, done.stderr) == (plain.stdout, plain.stderr)


def test_no_sitecustomize_stays_none(tmp_path):
    """`import sitecustomize` in the program fails as it would have failed, or finds the same as without us."""
    program = "import sys\ntry: import sitecustomize as s; print(s.__file__)\nexcept ImportError as e: print(e.name)"
    plain = subprocess.run([PLAIN, "-c", program], env={}, capture_output=True, text=True, timeout=60)
    assert run(PLAIN, "-c", program).stdout == plain.stdout


def test_an_agent_that_cannot_start_is_one_line_and_not_the_programs_problem(tmp_path):
    (tmp_path / "livepatch").mkdir()
    (tmp_path / "livepatch" / "__init__.py").write_text("raise RuntimeError('broken')\n")
    done = run(
        PLAIN, "-c", "import sys; print(sorted(m for m in sys.modules if 'livepatch' in m))", PYTHONPATH=str(tmp_path)
    )
    assert done.returncode == 0
    assert done.stdout == "[]\n"
    assert done.stderr.startswith("livepatch: the agent was not started in process ")
    assert done.stderr.endswith(": broken\n")


@pytest.mark.parametrize("option", ["-I", "-E", "-S"])
def test_one_that_ignores_the_environment_runs_unprepared(option):
    done = run(PLAIN, option, "-c", REPORT)
    assert done.stdout.startswith("none")
    assert done.stderr == ""


@pytest.mark.parametrize("python", older_pythons() or [pytest.param("", marks=pytest.mark.skip("none is installed"))])
def test_an_older_python_runs_unharmed(python, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("MARK = 'users'\n")
    program = "import sys; print([p for p in sys.path if 'attach' in p], sys.modules['sitecustomize'].MARK)"
    first = run(python, "-B", "-c", "import sys")
    if "command not found" in first.stderr:
        pytest.skip("only the name of it is there")
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    done = run(python, "-B", "-c", program, PYTHONPATH=str(tmp_path))
    assert "users" in done.stdout
    assert "attach" not in done.stdout
    assert done.stderr == ""


def test_a_free_threaded_python_runs_unharmed():
    program = """
import runpy, sys
sys.abiflags = "t"
try: runpy.run_path(sys.argv[1])
except ImportError: pass  # there is no other
print([name for name in sys.modules if name.startswith("livepatch")])
"""
    plain = [sys.executable, "-I", "-S", "-c", program, f"{prepare.SITE}/sitecustomize.py"]
    done = subprocess.run(plain, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_environment_is_prepared_once():
    once = prepare.environment({"A": "1"})
    assert once == {"A": "1", "PYTHONPATH": prepare.SITE}
    assert prepare.environment(once) == once
    assert prepare.environment({"PYTHONPATH": "/x:"})["PYTHONPATH"] == f"{prepare.SITE}{os.pathsep}/x:"
