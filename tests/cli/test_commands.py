"""Every command, as a person and as a program sees it."""

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import livepatch
from livepatch.cli.app import COMMANDS

START = "from livepatch.cli import main; main()"


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", START, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_begins_with_what_the_command_does(lp, name):
    done = lp(name, "--help")
    assert done.status == 0
    usage, _, said = done.out.partition("\n\n")
    assert usage.lower().startswith(f"usage: livepatch {name}")
    assert said.strip()


def test_the_help_lists_every_command(lp):
    done = lp("--help")
    assert done.status == 0
    listed = [line.split()[0] for line in done.out.partition("Commands:\n")[2].splitlines()]
    assert listed == list(COMMANDS)


@pytest.mark.parametrize(
    "line",
    ["nothing", "load", "load x.py", "list", "list --pid x", "list --pid 0", "disable --pid 5",
     "load --pid 1 nothere.py", "attach", "run", "build", "build -o x --old .",
     "build -o x --old . --new . --package y", "ps --what"],
)  # fmt: skip
def test_a_wrong_command_line_is_usage(lp, line):
    done = lp(*line.split())
    assert done.status == 2
    assert done.out == ""
    assert "Error: " in done.err


@pytest.mark.parametrize("line", ["load {patch}", "disable x", "enable x", "force x", "unload x", "list", "tasks"])
def test_who_is_meant_must_be_said(lp, patch, line):
    line = line.format(patch=patch("fix", "answer")).split()
    done = lp(*line)
    assert done.status == 2
    assert "Say which process: --pid N, --tree N or --name TEXT." in done.err
    done = lp(*line, "--name", "(")
    assert done.status == 2
    assert "'(' is no regular expression" in done.err


@pytest.mark.parametrize(
    ("word", "meant"), [("lod", "load"), ("stauts", "status"), ("uninstal", "uninstall"), ("x", None)]
)
def test_a_command_that_there_is_not(lp, word, meant):
    done = lp(word)
    assert done.status == 2
    assert done.err.rstrip().endswith(f"No such command '{word}'." + (f" Did you mean '{meant}'?" if meant else ""))


def test_from_load_to_unload(lp, service, ask, patch):
    file, pid = patch("fix", "answer"), ("--pid", service.pid)
    assert lp("load", file, *pid) == (0, f"'fix' is loaded into process {service.pid}: 1 function patched.\n", "")
    assert ask() == "new"
    assert "fix    1.2      enabled  1      __main__" in lp("list", *pid).out
    status = lp("status", *pid).out
    assert "'fix' 1.2: enabled\n  A fix.\n  __main__: answer,1\n" in status
    assert lp("disable", "fix", *pid) == (0, f"'fix' is disabled in process {service.pid}.\n", "")
    assert ask() == "old"
    assert "disabled" in lp("list", *pid).out
    assert lp("unload", "fix", *pid) == (0, f"'fix' is unloaded from process {service.pid}.\n", "")
    assert lp("list", *pid).out.endswith("No patch is loaded.\n")
    assert "livepatch: 'fix': unpatching complete\n" in lp("dmesg", *pid).out
    *_, last = lp("dmesg", "--time", *pid).out.splitlines()
    assert re.fullmatch(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\] livepatch: 'fix': unpatching complete", last)


def test_the_same_for_programs(lp, service, patch):
    file, pid = patch("fix", "answer"), ("--pid", service.pid, "--json")
    loaded = lp("load", file, *pid)
    assert loaded.err == ""
    assert loaded.json["pid"] == service.pid
    assert (loaded.json["name"], loaded.json["enabled"], loaded.json["transition"]) == ("fix", True, False)
    (listed,) = lp("list", *pid).json
    assert listed["patches"][0]["objects"] == [
        {"name": "__main__", "patched": True, "functions": ["answer,1"], "immediate": []}
    ]
    (status,) = lp("status", *pid).json
    assert status["hello"]["pid"] == service.pid
    assert status["blocking"] == []
    (tasks,) = lp("tasks", *pid).json
    assert [(task["kind"], task["name"], task["patch_state"]) for task in tasks["tasks"]] == [
        ("thread", "MainThread", -1)
    ]
    (log,) = lp("dmesg", *pid).json
    assert log["lines"][0] == "livepatch: enabling patch 'fix'"
    before, (timed,) = time.time(), lp("dmesg", "--time", *pid).json
    assert [each["line"] for each in timed["lines"]] == log["lines"]
    times = [each["time"] for each in timed["lines"]]
    assert times == sorted(times)
    assert before - 600 < times[0] < before
    disabled = lp("disable", "fix", "--unload", *pid)
    assert disabled.json["unloaded"] is True
    assert lp("list", *pid).json == [{"pid": service.pid, "prepared": True, "patches": []}]


def test_errors_for_programs(lp, service):
    done = lp("disable", "nothing", "--pid", service.pid, "--json")
    assert done.status == 1
    assert done.json["error"]["symbol"] == "ENOENT"
    assert done.err == f"livepatch: {done.json['error']['sentence']}\n"


def test_check(lp, occupied, patch):
    pid = ("--pid", occupied.pid)
    done = lp("check", patch("fix", "answer", "slow"), *pid, "--watch", 0)
    assert done.status == 0
    assert done.out.startswith(f"'fix' fits process {occupied.pid}. It would change:\n")
    assert "__main__  answer,1\n__main__  slow,1\n" in done.out
    assert "thread  worker  slow (" in done.out
    assert done.err == ""
    done = lp("check", patch("fix", "answer"), *pid)
    assert done.out.endswith("No task is in the way now.\n")
    (found,) = lp("check", patch("fix", "slow"), *pid, "--watch", 0, "--json").json
    assert found["objects"] == [{"name": "__main__", "functions": ["slow,1"], "immediate": []}]
    assert found["blocking"][0]["name"] == "worker"
    done = lp("check", patch("fix", "nothing"), *pid)
    assert done.status == 1
    assert lp("list", *pid, "--json").json[0]["patches"] == []


def test_tasks(lp, occupied, patch):
    pid = ("--pid", occupied.pid)
    done = lp("tasks", *pid)
    assert "thread  worker" in done.out
    lp("load", patch("fix", "slow"), "--timeout", 0, "--on-stall", "keep", *pid)
    done = lp("tasks", *pid)
    assert "unpatched  slow (" in done.out
    done = lp("tasks", "--stacks", *pid)
    assert "thread worker (" in done.out
    assert "  <- in the way\n" in done.out


def test_several_processes_are_looked_at_one_after_another(lp, service):
    done = lp("list", "--pid", service.pid, "--pid", 2**22 + 1, "--pid", service.pid, "--json")
    assert done.status == 4
    assert [entry["pid"] for entry in done.json] == [service.pid, 2**22 + 1]
    assert done.json[1]["error"]["symbol"] == "ESRCH"
    assert done.err == f"livepatch: There is no process {2**22 + 1}; `livepatch ps` lists the Python processes.\n"


# -- as a process of its own -----------------------------------------------------------------------------


def test_run_becomes_the_command(tmp_path):
    done = command("run", "--", "sh", "-c", "echo $PPID $$; exit 7")
    assert done.returncode == 7
    assert command("run", "--", "sh", "-c", "kill -TERM $$").returncode == -15
    assert command("run", "nothing-like-this").returncode == 127
    file = tmp_path / "file"
    file.touch()
    done = command("run", "--", file)
    assert (done.returncode, done.stderr) == (126, f"livepatch: {file}: Permission denied.\n")


def test_run_prepares():
    program = "import sys, os; print(os.path.exists(f'/tmp/livepatch-{os.geteuid()}/{os.getpid()}.sock'), sys.argv[1:])"
    done = command("run", sys.executable, "-c", program, "--help", "-x")
    assert (done.stdout, done.stderr) == ("True ['--help', '-x']\n", "")


def test_without_the_extra_it_is_one_sentence():
    hidden = f"import sys; sys.modules['rich'] = None\n{START}"
    done = subprocess.run([sys.executable, "-c", hidden, "ps"], capture_output=True, text=True, timeout=60)
    sentence = "livepatch: the command line needs rich; install it with: pip install 'livepatch[cli]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


def test_a_reader_that_has_seen_enough():
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "{START}" ps | true; exit 0'], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""


def test_an_internal_error_is_one_line_and_a_traceback_on_request(monkeypatch, capsys):
    from livepatch.attach import processes
    from livepatch.cli.app import run

    def broken():
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(processes, "pythons", broken)
    assert run(["ps"]) == 1
    err = capsys.readouterr().err
    assert err == "livepatch: Internal error, KeyError: 'a mistake of ours' (LIVEPATCH_DEBUG=1 shows where)\n"
    monkeypatch.setenv("LIVEPATCH_DEBUG", "1")
    assert run(["ps"]) == 1
    assert "in broken" in capsys.readouterr().err


#: What no command needs before it draws, attaches or reads an archive.
HEAVY = {"rich", "asyncio", "zipfile", "ctypes", "importlib.metadata", "concurrent.futures", "livepatch.core.registry"}


@pytest.mark.parametrize(
    ("arguments", "there", "absent"),
    [
        (["--version"], "livepatch.cli.app", {"livepatch.attach", "livepatch.fleet", "livepatch.archive"}),
        (["load", "--help"], "livepatch.cli.settle", {"livepatch.archive.format", "livepatch.attach.entry"}),
        (["load", "--help"], "livepatch.cli.settle", {"livepatch.build", "livepatch.cli.archives"}),
        (["status", "--pid", "1"], "livepatch.attach.client", {"livepatch.archive.format", "livepatch.attach.entry"}),
    ],
)
def test_what_a_command_does_not_need_is_not_imported(arguments, there, absent):
    """Most of a short command's time is imports."""
    command = [sys.executable, "-X", "importtime", "-m", "livepatch", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert there in loaded
    assert not loaded & (HEAVY | absent)


@pytest.mark.parametrize(
    "start", [["-c", "from _livepatch_command import main; main()"], ["-mlivepatch"], ["-Bsm", "livepatch"]]
)
def test_however_it_begins(start):
    """As the installed command does, or as a module of Python, whose option can be written in more than one way."""
    command = [sys.executable, "-X", "importtime", *start, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "livepatch.cli.app" in done.stderr
    assert "livepatch.core.registry" not in done.stderr


def test_a_program_has_it_all_from_the_start(tmp_path):
    """It may fork before it uses any of it, and the child go on with patches and generators that the parent has.
    What it is called, and with which arguments, does not matter.
    """
    program = "import sys, livepatch; print('livepatch.core.fork' in sys.modules, 'start_agent' in vars(livepatch))"
    (tmp_path / "other.py").write_text(program)
    (tmp_path / "livepatch").write_text(program)  # not to be imported: it has no suffix
    for start in (["-c", program], [tmp_path / "livepatch"], ["-m", "other"]):
        for words in ([], ["-m", "livepatch"], ["livepatch"]):
            command = [sys.executable, *start, *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
            assert done.stdout.split() == ["True", "True"], (command, done.stderr)


def test_a_program_that_is_looked_for_has_it_all(tmp_path):
    """Also if livepatch is imported before Python has found the program, as `sitecustomize` can have it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, livepatch; print(sys.argv[0], 'livepatch.core.fork' in sys.modules, flush=True)"
    )
    (tmp_path / "other.py").touch()
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    for words in ([], ["-m", "livepatch"], ["livepatch"]):
        command = [sys.executable, "-W", "ignore: -m livepatch ", "-m", "other", *words]
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment)
        assert done.stdout.split() == ["-m", "True"], (command, done.stderr)


def test_the_installed_command_begins_where_it_can_be_told():
    with open(Path(__file__).parents[2] / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["scripts"] == {"livepatch": "_livepatch_command:main"}


def test_the_version_is_that_of_the_package():
    """The command takes it from the source: to ask for what is installed takes longer than all else."""
    with open(Path(__file__).parents[2] / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["version"] == livepatch.__version__
