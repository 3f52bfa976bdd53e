"""The report, the metrics and the trace of real servers with several processes, patched as one under load."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.fleet.test_servers import WAYS, imported, redis, serving
from tests.observe.test_report import read
from tests.observe.test_spans import attributes, collector, livepatch
from tests.servers.harness import STALL, eventually, patch_from_source

__all__ = ["collector", "redis"]
pytestmark = [pytest.mark.slow, pytest.mark.once]

#: The machine may be busy.
PATIENT = "from livepatch.observe import metrics, report; metrics.PATIENCE = report._PATIENCE = 60.0\n"


def scraped(*arguments):
    """Of each metric its value by process; of several series the sum."""
    done = livepatch("status", "--metrics", *arguments, code=PATIENT)
    assert (done.returncode, done.stderr) == (0, "")
    found = {}
    for family in text_string_to_metric_families(done.stdout):
        for sample in family.samples:
            by_pid = found.setdefault(sample.name.removeprefix("livepatch_"), {})
            pid = int(sample.labels.get("pid", 0))
            by_pid[pid] = by_pid.get(pid, 0) + sample.value
    return found


@pytest.mark.parametrize("name", ["gunicorn", "celery-prefork"])
def test_all_of_it_tells_the_same(name, request, tmp_path, collector):
    way = WAYS[name]
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
    patch, report = patch_from_source(tmp_path), tmp_path / "report.html"
    with serving(name, request) as (server, _):
        patched = way.processes - (not way.preloaded)
        eventually(lambda: imported(server, patch) == patched, "they have not all imported it")
        pids = set(server.pids())
        tree = ("--tree", server.process.pid, "--timeout", 2 * STALL)
        without = {server.process.pid} if not way.preloaded else set()

        before = scraped(*tree[:2])
        assert before["processes"] == {0: len(pids)}
        assert before["up"] == before["agent"] == dict.fromkeys(pids, 1)
        assert "patch_enabled" not in before

        for operation, direction, enabled in (("load", "patching", 1), ("disable", "unpatching", 0)):
            what = patch if operation == "load" else patch.stem
            done = livepatch(operation, what, *tree, "--report", report, code=PATIENT, **variables)
            assert done.returncode == 0, done.stderr
            assert set(server.pids()) == pids

            page = read(report)
            assert f"Done in {patched} processes" in page.text
            assert set(map(int, re.findall(r"Process (\d+) ", page.text))) == pids - without
            rows = set(map(int, re.findall(r"<tr><td>(?:<a [^>]*>)?(\d+)(?:</a>)?</td><td><b", report.read_text())))
            assert rows == pids
            assert page.text.count("unconcerned") == len(without)
            assert page.text.count(f"starting {direction} transition") == patched
            assert page.text.count(f"{direction} complete") == patched

            span = collector.span
            collector.requests.clear()
            assert (span.name, span.status.code) == (f"livepatch {operation}", 0)
            assert attributes(span)["livepatch.processes"] == len(pids)
            events = {}
            for event in span.events:
                events.setdefault(attributes(event)["process.pid"], []).append(event.name)
            assert events == {key: ["started", "completed"] for key in pids - without}

            now = scraped(*tree[:2])
            assert now["up"] == dict.fromkeys(pids, 1)
            assert now["patch_enabled"] == dict.fromkeys(pids - without, enabled)
            assert now["patch_in_transition"] == dict.fromkeys(pids - without, 0)
            over = {pid: count for pid, count in now["transition_duration_seconds_count"].items() if count}
            assert over == dict.fromkeys(pids - without, 1 if enabled else 2)
            tasks = {pid: moved for pid, moved in now["tasks_moved_total"].items() if moved}
            assert set(tasks) == pids - without, "in each at least one task has moved"
            assert not any(now["tainted"].values())
