"""A command as a span of OpenTelemetry, with an event for whatever happens to a process.

Only where the user has set OpenTelemetry up, by the variables of its specification: OTEL_TRACES_EXPORTER,
OTEL_EXPORTER_OTLP_ENDPOINT and the like; OTEL_SDK_DISABLED ends it. TRACEPARENT makes the span a child, so that a
deployment shows what it did. The exporter is what these name, found as the SDK finds it.

Nothing here may keep a command from its work or its end: what is collected is sent once, when all is over, and if that
is impossible a warning says so.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from .events import BACK, BEGIN, END, FORCE, LOOK, STALL, UNLOAD, Event, Seen

#: Any of these says that traces are wanted.
_ASKED = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
#: Seconds that sending may take, if the user has not said it: the command is over, and somebody waits for it.
_PATIENCE = "3"


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """The user has set OpenTelemetry up."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return exporter != "none" and any(environment.get(name, "").strip() for name in _ASKED)


def observer() -> Spans | None:
    """What listens to a transaction; None, after a warning, if what the user wants is not there."""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        named = next(name for name in _ASKED if os.environ.get(name, "").strip())
        _warn(f"{named} asks for OpenTelemetry, which is not installed: pip install 'livepatch[otel]'.")
        return None
    try:
        return Spans(_exporter())
    except Exception as error:  # what the exporter thinks of its variables
        _warn(f"There will be no trace: {error}")
        return None


def _warn(sentence: str) -> None:
    sys.stderr.write(f"livepatch: {sentence}\n")


def _exporter() -> Any:
    name = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if name == "otlp":
        protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = next((os.environ[each] for each in protocols if os.environ.get(each)), "http/protobuf")
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
        for limit in ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"):
            if os.environ.get(limit):
                break
        else:
            os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = _PATIENCE
    found = entry_points(group="opentelemetry_traces_exporter", name=name)
    if not found:
        raise ValueError(f"no exporter '{name}' for OpenTelemetry is installed.")
    return next(iter(found)).load()()


class Spans:
    """An observer of one transaction."""

    def __init__(self, exporter: Any) -> None:
        """`exporter` is a SpanExporter of the SDK."""
        from opentelemetry.propagate import extract
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        logging.getLogger("opentelemetry").addHandler(logging.NullHandler())  # it would write tracebacks
        logging.getLogger("opentelemetry").propagate = False
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({} if named else {"service.name": "livepatch"})
        self._exporter = exporter
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        parents = {key: os.environ[key.upper()] for key in ("traceparent", "tracestate") if key.upper() in os.environ}
        tracer = self._provider.get_tracer("livepatch")
        self._span: Any = tracer.start_span("livepatch", context=extract(parents), start_time=time.time_ns())
        self._said: dict[tuple[int, int], str] = {}

    def __call__(self, event: Event) -> None:
        if event.kind in (BEGIN, FORCE, BACK, UNLOAD, STALL):
            name = {BEGIN: "started", FORCE: "forced", BACK: "reversed", UNLOAD: "unloaded", STALL: "stalled"}
            for seen in event.processes:
                if event.kind != UNLOAD or (seen.state is not None and not event.returning):
                    self._add(name[event.kind], seen)
        elif event.kind in (LOOK, END):
            for seen in event.processes:
                self._settled(event, seen)
        if event.kind == END:
            self._end(event)

    def _settled(self, event: Event, seen: Seen) -> None:
        """Tell once what became of a process."""
        became = {"refused": "refused", "ended": "ended", "left": "left"}.get(seen.outcome)
        takes_part = seen.outcome not in ("untouched", "unconcerned")
        if became is None and takes_part and not seen.silent and _has_arrived(seen, event.enabled):
            became = "completed reversal" if event.returning else "completed"
        if became is not None and self._said.get((seen.pid, seen.started)) != became:
            self._said[seen.pid, seen.started] = became
            self._add(became, seen)

    def _add(self, name: str, seen: Seen) -> None:
        attributes: dict[str, Any] = {
            "process.pid": seen.pid,
            "process.executable.path": seen.process.executable,
            "process.command_line": seen.process.title,
        }
        if seen.state is not None:
            attributes |= {
                "livepatch.enabled": seen.state["enabled"],
                "livepatch.transition": seen.state["transition"],
                "livepatch.tasks": seen.state["total"],
                "livepatch.tasks_left": seen.state["left"],
            }
            if name == "stalled":
                attributes["livepatch.blocking"] = [
                    f"{task['kind']} {task['name']}: {(task['blocking'] or ['-'])[0]}"
                    for task in seen.state.get("blocking", ())
                ]
        if seen.error is not None:
            attributes["error.message"] = str(seen.error)
        self._span.add_event(name, attributes)

    def _end(self, event: Event) -> None:
        from opentelemetry.trace import Status, StatusCode

        from .trail import archive_of_params

        archive = archive_of_params(event.params)
        self._span.update_name(f"livepatch {event.operation}")
        attributes = {
            "livepatch.operation": event.operation,
            "livepatch.patch": event.patch or archive.get("name"),
            "livepatch.version": archive.get("version"),
            "livepatch.sha256": archive.get("sha256"),
            "livepatch.signer": archive.get("signer"),
            "livepatch.processes": len(event.processes),
        }
        self._span.set_attributes({key: value for key, value in attributes.items() if value is not None})
        bad = [seen for seen in event.processes if seen.outcome in ("refused", "left", "reversed")]
        if event.error is not None or bad:
            error = event.error or next((seen.error for seen in bad if seen.error is not None), None)
            said = f"{len(bad)} {bad[0].outcome}" if bad else "interrupted"
            said = str(error) if isinstance(error, OSError) else said
            self._span.set_status(Status(StatusCode.ERROR, said))
        self._span.end()
        self._send()

    def _send(self) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            sent = self._exporter.export([self._span]) is SpanExportResult.SUCCESS
            self._exporter.shutdown()
            why = "the collector did not take it"
        except Exception as error:
            sent, why = False, str(error)
        if not sent:
            _warn(f"The trace of this command was not sent: {why}.")


def _has_arrived(seen: Seen, enabled: bool) -> bool:
    """All tasks are where they are to be."""
    return seen.state is not None and not seen.state["transition"] and seen.state["enabled"] == enabled
