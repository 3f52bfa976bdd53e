"""Prometheus text: read by Prometheus' own parser, and true."""

import signal

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.agent.targets import Target
from tests.cli.conftest import SERVICE

from livepatch.observe import metrics


@pytest.fixture
def scrape(lp):
    """The value of every series, by its name and labels."""

    def scraped(*arguments, status=0):
        done = lp("status", "--metrics", *arguments)
        assert done.status == status
        families = list(text_string_to_metric_families(done.out))
        names = [family.name for family in families]
        assert len(names) == len(set(names))
        assert all(family.documentation and family.type != "unknown" for family in families), families
        found = {}
        for family in families:
            for sample in family.samples:
                key = sample.name.removeprefix("livepatch_"), *sorted(sample.labels.items())
                assert key not in found, "two values of one series"
                found[key] = sample.value
        return Series(found), done.err

    return scraped


class Series:
    def __init__(self, found):
        self.found = found

    def of(self, name, **labels):
        """The value of the one series of that name that has these labels, None if there is none."""
        wanted = set(labels.items())
        values = [value for (found, *has), value in self.found.items() if found == name and wanted <= set(has)]
        assert len(values) < 2, values
        return values[0] if values else None


def test_a_process_and_its_patch(scrape, lp, service, patch):
    pid = str(service.pid)
    quiet, _ = scrape("--pid", pid)
    assert (quiet.of("up", pid=pid), quiet.of("agent", pid=pid), quiet.of("processes")) == (1, 1, 1)
    assert quiet.of("patch_enabled") is None
    assert lp("load", patch("fix", "answer"), "--pid", pid).status == 0
    loaded, _ = scrape("--pid", pid)
    assert loaded.of("patch_enabled", pid=pid, patch="fix") == 1
    assert loaded.of("patch_info", patch="fix", version="1.2") == 1
    assert loaded.of("patch_in_transition", patch="fix") == 0
    assert loaded.of("patch_functions", patch="fix") == 1
    assert loaded.of("last_transition_seconds", patch="fix", direction="patching", outcome="completed") > 0
    assert loaded.of("last_transition_tasks", patch="fix") == 1
    assert loaded.of("transition_duration_seconds_count", direction="patching", outcome="completed") == 1
    moved = [loaded.of("tasks_moved_total", way=way) for way in ("stack check", "exit", "idle", "force")]
    assert sum(moved) == 1
    assert (loaded.of("tainted", pid=pid), loaded.of("reversals_total"), loaded.of("forced_total")) == (0, 0, 0)
    assert lp("disable", "fix", "--pid", pid).status == 0
    disabled, _ = scrape("--pid", pid)
    assert disabled.of("patch_enabled", patch="fix") == 0
    assert disabled.of("last_transition_seconds", patch="fix", direction="unpatching") > 0
    assert disabled.of("transition_duration_seconds_count", direction="unpatching", outcome="completed") == 1


def test_a_transition_that_is_stuck_and_is_forced(scrape, lp, occupied, patch):
    lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0.1, "--on-stall", "keep")
    first, _ = scrape("--pid", occupied.pid)
    assert first.of("patch_in_transition", patch="fix") == 1
    assert (first.of("transition_tasks", patch="fix"), first.of("transition_tasks_left", patch="fix")) == (2, 1)
    assert first.of("last_transition_seconds") is None
    second, _ = scrape("--pid", occupied.pid)
    assert second.of("transition_seconds", direction="patching") > first.of("transition_seconds", direction="patching")
    lp("force", "fix", "--pid", occupied.pid, "--yes")
    forced, _ = scrape("--pid", occupied.pid)
    assert (forced.of("tainted"), forced.of("forced_total"), forced.of("tasks_moved_total", way="force")) == (1, 1, 1)
    assert forced.of("transition_seconds") is None


def test_a_transition_that_goes_back(scrape, lp, occupied, patch):
    lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0.1)
    found, _ = scrape("--pid", occupied.pid)
    assert found.of("transition_duration_seconds_count", direction="patching", outcome="reversed") == 1
    assert found.of("transition_duration_seconds_count", outcome="completed") is None
    assert found.of("reversals_total") == 1


def test_refusals_are_counted_once(scrape, lp, service, patch):
    assert lp("load", patch("fix", "nothing_of_that_name"), "--pid", service.pid).status == 1
    assert lp("disable", "nothing", "--pid", service.pid).status == 1
    assert lp("disable", "nothing", "--pid", service.pid).status == 1
    found, _ = scrape("--pid", service.pid)
    assert found.of("refusals_total", operation="enable", reason="EINVAL") == 1
    assert found.of("refusals_total", operation="write_enabled", reason="ENOENT") == 2


def test_what_cannot_be_asked_keeps_nobody_from_the_others(scrape, service, patch):
    """A stopped process, one that has ended, one without an agent, and one that is well."""
    with (
        Target(SERVICE) as stopped,
        Target("say('ready')\nhear()") as plain,
        Target("") as gone,
    ):
        assert stopped.hear() == plain.hear() == "ready"
        gone.process.wait()
        stopped.signal(signal.SIGSTOP)
        try:
            pids = [stopped.pid, gone.pid, plain.pid, service.pid]
            found, said = scrape(*(word for pid in pids for word in ("--pid", pid)))
        finally:
            stopped.signal(signal.SIGCONT)
        assert [found.of("up", pid=str(pid)) for pid in pids] == [0, 0, 1, 1]
        assert [found.of("agent", pid=str(pid)) for pid in pids] == [None, None, 0, 1]
        assert found.of("unreachable", pid=str(stopped.pid), reason="ETIMEDOUT") == 1
        assert found.of("unreachable", pid=str(gone.pid), reason="ESRCH") == 1
        assert found.of("processes") == 4
        assert said.count("\n") == 2


def test_who_listens_and_never_answers_is_waited_for_no_longer(scrape, monkeypatch):
    """Its agent is stuck, and it is not stopped."""
    monkeypatch.setattr(metrics, "PATIENCE", 0.5)
    script = SERVICE.replace("lp.start_agent()", "lp.start_agent(); from livepatch.agent import methods; import time")
    script = script.replace('say("ready")', 'methods.METHODS["hello"] = lambda client: time.sleep(1000); say("ready")')
    with Target(script) as stuck:
        assert stuck.hear() == "ready"
        found, said = scrape("--pid", stuck.pid)
    assert found.of("up", pid=str(stuck.pid)) == 0
    assert found.of("unreachable", reason="ETIMEDOUT") == 1
    assert "did not answer" in said


def test_nobody_there_is_no_failure_either(scrape):
    found, said = scrape("--name", "there is no process with such a command line, but for this")
    assert found.of("processes") == 0
    assert "There is no Python process" in said


def test_names_that_are_not_for_labels(scrape, lp):
    """Whatever a command line holds, the text stays readable."""
    odd = 'a "quoted" \\ back\\nslash \udc80'
    with Target(SERVICE, arguments=(odd, "two\nlines")) as service:
        assert service.hear() == "ready"
        found, _ = scrape("--pid", service.pid)
        assert found.of("up", pid=str(service.pid)) == 1
        (info,) = [dict(labels) for name, *labels in found.found if name == "process_info"]
        assert "quoted" in info["command"]


def test_what_is_escaped_is_read_back():
    odd = 'back\\slash, "quote", new\nline, \\n, {brace} '
    made = metrics.text([metrics.Look(1, [metrics.Sample("patch_info", {"patch": odd, "version": ""}, 1)], None)])
    families = {family.name: family for family in text_string_to_metric_families(made)}
    assert families["livepatch_patch_info"].samples[0].labels["patch"] == odd
