"""Traces, as a collector gets them: the command as a user would run it, and a server that takes OTLP over HTTP."""

import gzip
import http.server
import os
import subprocess
import sys
import threading

import pytest

from livepatch.observe import spans

trace = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

START = "from livepatch.cli import main; main()"


class Collector(http.server.ThreadingHTTPServer):
    """What was sent to it."""

    daemon_threads = True

    def __init__(self, status=200):
        super().__init__(("127.0.0.1", 0), Taking)
        self.status = status
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def span(self):
        """The only one."""
        (request,) = self.requests
        (span,) = [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        return span


class Taking(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append(trace.ExportTraceServiceRequest.FromString(body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def collector():
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def livepatch(*arguments, code="", **variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "TRACE"))}
    command = [sys.executable, "-c", code + START, *map(str, arguments)]
    return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, timeout=120)


def attributes(of):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


def test_a_load_is_a_span_with_events(collector, service, patch):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    done = livepatch(
        "load",
        patch("fix", "answer"),
        "--pid",
        service.pid,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        TRACEPARENT=parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
    span = collector.span
    assert span.name == "livepatch load"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (parent[3:35], parent[36:52])
    assert attributes(span)["livepatch.patch"] == "fix"
    assert len(attributes(span)["livepatch.sha256"]) == 64
    assert [event.name for event in span.events] == ["started", "completed"]
    assert {attributes(event)["process.pid"] for event in span.events} == {service.pid}
    assert span.start_time_unix_nano <= span.events[0].time_unix_nano <= span.events[1].time_unix_nano
    assert span.events[1].time_unix_nano <= span.end_time_unix_nano
    assert span.status.code == 0
    (resource,) = [r.resource for r in collector.requests[0].resource_spans]
    assert attributes(resource)["service.name"] == "livepatch"


def test_a_stall_that_goes_back_is_an_error(collector, occupied, patch):
    file = patch("fix", "slow")
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "deploys"}
    assert livepatch("load", file, "--pid", occupied.pid, "--timeout", 0.2, **variables).returncode == 3
    span = collector.span
    assert [event.name for event in span.events] == ["started", "stalled", "reversed", "completed reversal"]
    (blocking,) = attributes(span.events[1])["livepatch.blocking"].values
    assert "thread worker: slow" in blocking.string_value
    assert span.status.code == 2
    (resource,) = [r.resource for r in collector.requests[0].resource_spans]
    assert attributes(resource)["service.name"] == "deploys"


def test_a_refusal_and_a_force(collector, occupied, patch):
    variables = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces"}
    done = livepatch("load", patch("bad", "nothing_of_that_name"), "--pid", occupied.pid, **variables)
    assert done.returncode == 1
    assert [event.name for event in collector.span.events] == ["started", "refused"]
    assert "nothing_of_that_name" in collector.span.status.message
    collector.requests.clear()
    forced = ("--timeout", 0.2, "--on-stall", "force", "--yes")
    assert livepatch("load", patch("fix", "slow"), "--pid", occupied.pid, *forced, **variables).returncode == 3
    assert [event.name for event in collector.span.events] == ["started", "stalled", "forced", "completed"]


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_SERVICE_NAME": "an application's"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {},
    ],
)
def test_only_where_it_is_set_up(variables):
    assert not spans.wanted(variables)


def test_it_is_said_if_it_is_not_installed(service, patch):
    hidden = (
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name.startswith('opentelemetry') else find(name, *rest)\n"
    )
    variables = {"OTEL_TRACES_EXPORTER": "otlp"}
    done = livepatch("load", patch("fix", "answer"), "--pid", service.pid, code=hidden, **variables)
    assert done.returncode == 0
    sentence = "OTEL_TRACES_EXPORTER asks for OpenTelemetry, which is not installed: pip install 'livepatch[otel]'."
    assert done.stderr == f"livepatch: {sentence}\n"


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"OTEL_TRACES_EXPORTER": "another"}, id="no such exporter"),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, id="nobody listens"),
    ],
)
def test_what_cannot_be_sent_is_a_sentence_and_no_failure(service, ask, patch, variables):
    done = livepatch("load", patch("fix", "answer"), "--pid", service.pid, **variables)
    assert done.returncode == 0
    assert ask() == "new"
    assert done.stderr.startswith("livepatch: The")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_the_console_exporter(service, patch):
    done = livepatch("load", patch("fix", "answer"), "--pid", service.pid, OTEL_TRACES_EXPORTER="console")
    assert done.returncode == 0
    assert '"name": "livepatch load"' in done.stdout
