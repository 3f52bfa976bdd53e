"""The story that the demo tells, step by step, and what it comes to."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table
from rich.text import Text

from . import Options, service
from .stage import Stage
from .traffic import Span, Traffic, Transitions

ARCHIVE = "starlette-0.27.0.livepatch"
PATCH = "starlette-0.27.0"
STREAMS = 4
#: Seconds without any command, for the comparison; and after each change.
QUIET, PAUSE = 5.0, 2.0


class Show:
    """One performance. Every promise is a name, a sentence, and whether it held."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.stage = Stage(on_stderr=options.json)
        self.promises: list[tuple[str, str, bool]] = []
        self.exploits: list[str] = []
        self.quiet: list[Span] = []
        self.busy: list[Span] = []
        # From the beginning on:
        self.folder: service.Folder
        self.port, self.url, self.pid = 0, "", 0
        self.started = 0
        self.connections: frozenset[str] = frozenset()
        self.traffic: Traffic
        self.transitions: Transitions

    def run(self) -> int:
        """Give the show, and return the exit status."""
        stage = self.stage
        stage.title("livepatch: a running server gets a security fix, and gives it back, without a restart")
        environment = self._environment()
        with ExitStack() as stack:
            path = Path(stack.enter_context(TemporaryDirectory(prefix="livepatch-demo-")))
            self.folder = service.Folder(path, environment)
            self._start_service(stack)
            self._start_traffic(stack)
            with stage.pulse(self.traffic, self.pid):
                self._begin()
                self._exploit(works=True)
                self._build()
                self._load()
                self._disable()
                self._again_and_again()
            self._judge()
        return self._summary()

    # -- the acts ----------------------------------------------------------------------------------

    def _environment(self) -> Path:
        if not service.is_installed():
            self.stage.say(f"installing starlette 0.26.1 and uvicorn into {service.cache()}, this once")
        return service.environment()

    def _start_service(self, stack: ExitStack) -> None:
        self.stage.step("A shop on starlette 0.26.1, with people in it")
        self.port = service.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = f"livepatch run -- python -m uvicorn shop:app --port {self.port} --log-level warning"
        self.stage.typed(f"{command} &")
        log = self.folder.path / "service.log"
        process = stack.enter_context(service.background(self.folder, command, log, heard=False))
        service.wait_until_ready(process, self.port, log)
        self.pid = process.pid
        self.started = service.start_time(self.pid)
        self.transitions = Transitions(self.pid)
        stack.callback(self.transitions.stop)

    def _start_traffic(self, stack: ExitStack) -> None:
        rate, connections = self.options.rate, self.options.connections
        command = f"python load.py {self.url} --rate {rate:g} --connections {connections} --streams {STREAMS}"
        self.stage.typed(f"{command} &")
        log = self.folder.path / "load.log"
        self.traffic = Traffic(stack.enter_context(service.background(self.folder, command, log, heard=True)))

    def _begin(self) -> None:
        expected = self.options.connections + STREAMS
        deadline = time.monotonic() + service.PATIENCE
        while len(self.traffic.answers) < expected and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)  # everybody is warm
        self.connections = service.connections(self.pid, self.port)
        begun = time.monotonic()
        time.sleep(QUIET)
        self.quiet.append((begun, time.monotonic()))
        latency = self.traffic.latency(self.quiet)
        self.stage.say(
            f"process {self.pid}: {len(self.connections)} connections, {STREAMS} of them pages that stay open,"
            f" {latency.answers / QUIET:.0f} requests a second"
        )

    def _exploit(self, *, works: bool) -> None:
        status = self.stage.run(self.folder, f"python poc.py {self.url}")
        self.exploits.append({0: "refused", 1: "works"}.get(status, f"status {status}"))
        if status != int(works):
            self.stage.check(False, f"the exploit should have been {'possible' if works else 'refused'} here")

    def _command(self, command: str) -> Span:
        """A command of livepatch that has to succeed, and when it ran."""
        begun = time.monotonic()
        status = self.stage.run(self.folder, command)
        if status:
            self.promises.append(("command", f"`{command}` ended with status {status}", False))
            self.stage.check(False, f"that ended with status {status}")
        return begun, time.monotonic()

    def _build(self) -> None:
        self.stage.step("The fix, from two releases on the package index; nothing of them is executed")
        self._command(f"livepatch build --package starlette --from 0.26.1 --to 0.27.0 -o {ARCHIVE}")
        self._command(f"livepatch check {ARCHIVE} --pid {self.pid}")

    def _load(self) -> None:
        self.stage.step("Into the running process, while it serves")
        self._change(f"livepatch load {ARCHIVE} --pid {self.pid}")
        self._exploit(works=False)
        self._command(f"livepatch dmesg --pid {self.pid}")
        time.sleep(PAUSE)

    def _disable(self) -> None:
        self.stage.step("And back")
        self._change(f"livepatch disable {PATCH} --pid {self.pid}")
        self._exploit(works=True)
        self._command(f"livepatch unload {PATCH} --pid {self.pid}")
        time.sleep(PAUSE)

    def _change(self, command: str) -> None:
        number, failed = len(self.transitions.milliseconds) + 1, len(self.traffic.failed)
        span = self._command(command)
        self.busy.append(span)
        milliseconds = self.transitions.wait_for(number)
        self.stage.check(
            len(self.traffic.failed) == failed,
            f"every task moved within {milliseconds:.1f} ms, the whole command took {span[1] - span[0]:.2f} s,"
            f" {len(self.traffic.failed) - failed} requests failed",
        )

    def _again_and_again(self) -> None:
        if not self.options.rounds:
            return
        self.stage.step(f"In and out {self.options.rounds} times more")
        for _ in range(self.options.rounds):
            self.busy.append(self._command(f"livepatch load {ARCHIVE} --pid {self.pid}"))
            self.busy.append(self._command(f"livepatch disable {PATCH} --unload --pid {self.pid}"))
        self.transitions.wait_for(2 + 2 * self.options.rounds)

    # -- what it comes to ---------------------------------------------------------------------------

    def _judge(self) -> None:
        """Say of every promise whether it held. The processes still run."""
        traffic = self.traffic
        kept = len(service.connections(self.pid, self.port) & self.connections)
        started = service.start_time(self.pid)
        traffic.finish()
        requests, failed = len(traffic.answers), len(traffic.failed)
        expected = self.options.connections + STREAMS
        for name, sentence, held in (
            ("requests", f"{requests:,} answered, {failed} failed", failed == 0 and requests > 0),
            ("exploit", ", then ".join(self.exploits), self.exploits == ["works", "refused", "works"]),
            (
                "process",
                f"{self.pid}, started at {service.clock(started)}, as at the beginning",
                started == self.started,
            ),
            (
                "connections",
                f"{kept} of {expected} are open since the beginning",
                kept == expected == traffic.opened,
            ),
            (
                "memory",
                f"order numbers 1 to {traffic.highest_order:,}, none twice",
                traffic.orders == traffic.highest_order > 0,
            ),
        ):
            self.promises.append((name, sentence, held))

    def _summary(self) -> int:
        quiet, during = self.traffic.latency(self.quiet), self.traffic.latency(self.busy)
        times = sorted(self.transitions.milliseconds)
        facts = [(name, sentence, "✓" if held else "✗") for name, sentence, held in self.promises]
        facts += [
            ("transitions", f"{len(times)}, median {times[len(times) // 2]:.1f} ms, longest {times[-1]:.1f} ms", ""),
            ("latency, quiet", f"p50 {quiet.median:.1f} ms, p99 {quiet.p99:.1f} ms", ""),
            ("latency, patching", f"p50 {during.median:.1f} ms, p99 {during.p99:.1f} ms", ""),
        ]
        table = Table(show_header=False, title="What was promised, and measured", title_justify="left")
        for name, sentence, mark in facts:
            style = {"✓": "bold green", "✗": "bold red"}.get(mark, "")
            table.add_row(Text(name, style="bold"), Text(sentence), Text(mark, style=style))
        self.stage.console.print()
        self.stage.console.print(table)
        held = all(held for _, _, held in self.promises)
        if self.traffic.failed:
            self.stage.say(f"the first failure: {self.traffic.failed[0]}")
        if self.options.json:
            print(json.dumps(self._as_json(quiet, during, times, held), indent=2))
        return 0 if held else 1

    def _as_json(self, quiet: Any, during: Any, times: list[float], held: bool) -> dict[str, Any]:
        return {
            "held": held,
            "promises": [{"name": n, "what": sentence, "held": ok} for n, sentence, ok in self.promises],
            "requests": len(self.traffic.answers),
            "failed": self.traffic.failed,
            "exploits": self.exploits,
            "pid": self.pid,
            "transitions": times,
            "tasks": self.transitions.tasks,
            "quiet": asdict(quiet),
            "during": asdict(during),
        }
