"""Who tries to get something in that strict mode refuses is in the audit record, whoever it was that refused."""

import hashlib
import json
import os

import pytest
from tests.observe.conftest import record
from tests.trust.kit import asked, needs_ssh
from tests.trust.test_strict import altered, signed

__all__ = ["record", "signed"]
pytestmark = [needs_ssh, pytest.mark.once]


@pytest.mark.parametrize("what", ["unsigned", "altered", "stranger", "written by hand"])
def test_who_tried_what_is_recorded_although_no_process_was_asked(lp, machine, signed, key, other_key, record, what):
    """The command itself refuses, so that neither a process nor its log has heard of it."""
    machine.strict(machine.etc, key.line())
    file = signed
    if what == "unsigned":
        file = machine.archive("plain")
    if what == "altered":
        file = machine.root / "altered.livepatch"
        file.write_bytes(altered(signed, machine.archive("other")))
    if what == "stranger":
        assert lp("sign", file, "--key", other_key.path).status == 0
    if what == "written by hand":
        file = machine.root / "fix.py"
        file.write_text("import livepatch as lp\n__livepatch__ = lp.Patch('', [])\n")
    with machine.service() as target:
        done = lp("load", file, "--pid", target.pid)
        assert done.status == 1
        assert asked(target, "log") == ""
        if what != "written by hand":
            assert lp("install", file, "--system").status == 1
    loaded, *installed = map(json.loads, record.read_text().splitlines())
    assert (loaded["phase"], loaded["operation"]) == ("refused", "load")
    assert done.err == f"livepatch: {loaded['error']}\n"
    assert loaded["patch"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (loaded["patch"]["file"], loaded["patch"]["signer"]) in ((str(file), None), (str(file), "unknown"))
    assert [each["pid"] for each in loaded["targets"]] == [target.pid]
    assert loaded["who"]["uid"] == os.getuid()
    if what != "written by hand":
        (installed,) = installed
        assert (installed["phase"], installed["operation"]) == ("refused", "install")
        assert installed["patch"]["sha256"] == loaded["patch"]["sha256"]
    assert lp("audit", "--verify").status == 0
    assert f"refused: {loaded['error']}" in lp("audit").out
