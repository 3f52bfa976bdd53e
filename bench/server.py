"""A server under load while patches go in and out: the demo's service, traffic and patch, without the show.

The patch goes in and out through one connection to the agent, so that what is measured is what happens in the server,
not the start of a Python for every command on the same processors. Quiet spans and transitions take turns.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from livepatch.attach.client import Client
from livepatch.demo import service
from livepatch.demo.traffic import Span, Traffic

from .measure import Row

_RATE = 300


def under_load(quick: bool) -> list[Row]:
    """Failed requests, and how long the slowest hundredth took."""
    environment = service.environment()
    with ExitStack() as stack:
        path = Path(stack.enter_context(TemporaryDirectory()))
        folder, port = service.Folder(path, environment), service.free_port()
        log = path / "service.log"
        run = f"livepatch run -- python -m uvicorn shop:app --port {port} --log-level warning"
        process = stack.enter_context(service.background(folder, run, log, heard=False))
        service.wait_until_ready(process, port, log)
        load = f"python load.py http://127.0.0.1:{port} --rate {_RATE}"
        traffic = Traffic(stack.enter_context(service.background(folder, load, path / "load.log", heard=True)))
        build = "livepatch build --package starlette --from 0.26.1 --to 0.27.0 -o fix.livepatch"
        subprocess.run(build.split(), cwd=path, env=folder.env, check=True, stdout=subprocess.DEVNULL)
        time.sleep(2.0)
        quiet: list[Span] = []
        loading: list[Span] = []
        unpatching: list[Span] = []
        with Client(process.pid) as client:
            for _ in range(3 if quick else 15):
                quiet.append(_span(lambda: time.sleep(1.0)))
                loading.append(_span(lambda: _finish(client, client.send_file("load", path / "fix.livepatch"))))
                time.sleep(0.5)
                unpatching.append(_span(lambda: _finish(client, client.call("write_enabled", name="fix", value="0"))))
                client.call("unload", name="fix")
                time.sleep(0.5)
        traffic.finish()
    before = traffic.latency(quiet)
    during = traffic.latency([*loading, *unpatching])
    held = len(traffic.failed) == 0 and during.p99 <= 2 * before.p99
    each = [sum(end - begin for begin, end in spans) / len(spans) * 1000 for spans in (loading, unpatching)]
    return [
        Row(
            f"server at {_RATE} requests/s while patches go in and out",
            "0 failed, p99 ≤ 2x quiet",
            f"{len(traffic.failed)} failed of {len(traffic.answers):,};"
            f" p99 {during.p99:.0f} ms, quiet {before.p99:.0f} ms"
            f" (p50 {during.median:.1f} and {before.median:.1f} ms; in {each[0]:.0f} ms, out {each[1]:.0f} ms)",
            held,
        )
    ]


def _finish(client: Client, state: dict[str, Any]) -> None:
    """Wait until the transition is over."""
    while state["transition"]:
        time.sleep(0.002)
        state = client.call("status", name=state["name"])


def _span(work: Any) -> Span:
    begun = time.monotonic()
    work()
    return begun, time.monotonic()
