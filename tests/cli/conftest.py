"""The command line in this process, and processes to aim it at."""

import json
import textwrap
from typing import NamedTuple

import pytest
from tests.agent.targets import SERVES, Target

from livepatch.cli import candidates, process
from livepatch.cli.app import run
from livepatch.fleet import transaction
from livepatch.observe import metrics, report

#: A prepared service.
SERVICE = f"""
    import livepatch as lp
    def answer(): return "old"
    lp.start_agent()
    {SERVES}"""


class Done(NamedTuple):
    """A command that ended: its exit status and what it said."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


#: For how long a command that asks only for a moment does so here: a busy machine may stand still for seconds.
MOMENT = 8.0


def patiently(monkeypatch):
    for module, name in (
        (candidates, "_PATIENCE"),
        (process, "_PATIENCE"),
        (metrics, "PATIENCE"),
        (report, "_PATIENCE"),
        (transaction, "_POLL"),
    ):
        monkeypatch.setattr(module, name, MOMENT)


@pytest.fixture
def lp(capsys, monkeypatch):
    """Run a livepatch command line."""
    patiently(monkeypatch)

    def command(*arguments):
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        done = Done(status, *capsys.readouterr())
        assert "Traceback" not in done.err
        return done

    return command


@pytest.fixture
def service():
    with Target(SERVICE) as target:
        assert target.hear() == "ready"
        yield target


@pytest.fixture
def ask(service):
    """What the service answers now."""

    def asked():
        service.say("ask")
        return service.hear()

    return asked


@pytest.fixture
def occupied(service):
    """The service, with a thread inside of `slow` until the test says "leave"."""
    service.say("enter")
    assert service.hear() == "inside"
    return service


@pytest.fixture
def patch(tmp_path):
    """Write a patch by hand that replaces functions of the main program."""

    def written(name, *functions):
        lines = ["import livepatch as lp"]
        lines += [f"def {function}(): return 'new'" for function in functions]
        funcs = ", ".join(f"lp.Func('{function}', {function})" for function in functions)
        lines.append(f"__livepatch__ = lp.Patch('', [lp.Object(None, [{funcs}])], version='1.2', description='A fix.')")
        path = tmp_path / f"{name}.py"
        path.write_text("\n".join(lines) + "\n")
        return path

    return written


@pytest.fixture
def trees(tmp_path):
    """Two source trees with one module each."""

    def written(old, new, name="service"):
        for version, source in (("old", old), ("new", new)):
            folder = tmp_path / version
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.py").write_text(textwrap.dedent(source))
        return tmp_path / "old", tmp_path / "new"

    return written
