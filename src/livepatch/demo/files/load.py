"""Traffic for the demo's service: keep-alive connections that order and fetch pages, and pages that stay open.

Usage: python load.py URL [--connections N] [--streams N] [--rate N_PER_SECOND]. Runs until its standard input ends.

Each connection has a timetable of its own and a request counts from the moment it was due, so that a server which
stands still is seen by everybody who would have come meanwhile. Every answer is checked: status, content, and that no
order number comes twice. A connection that breaks is a failure, and is opened again.

Ten times a second a line of JSON goes out: what was answered since the last one, as [when, milliseconds] by the
monotonic clock; what failed, in words; and how things stand.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from urllib.parse import urlsplit

PAGE = b"<!doctype html><title>Shop</title><p>Welcome.\n"
PATIENCE = 10.0


class Failure(Exception):
    """An answer that is not right, in words."""


class Seen:
    """What all connections together have seen."""

    def __init__(self) -> None:
        self.answered: list[tuple[float, float]] = []
        self.failed: list[str] = []
        self.opened = 0
        self.orders: set[int] = set()

    def line(self) -> str:
        """What is new, as JSON; once."""
        answered, self.answered = self.answered, []
        failed, self.failed = self.failed, []
        return json.dumps(
            {
                "answered": [(round(when, 6), round(latency * 1000, 3)) for when, latency in answered],
                "failed": failed,
                "opened": self.opened,
                "orders": len(self.orders),
                "highest_order": max(self.orders, default=0),
            }
        )


class Visitor:
    """One connection, and another if it breaks."""

    def __init__(self, host: str, port: int, seen: Seen) -> None:
        self.host, self.port, self.seen = host, port, seen
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def connect(self) -> None:
        self.seen.opened += 1
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)

    async def browse(self, first: float, interval: float) -> None:
        """An order, the page, the page if it has changed, and again; the first at a certain time."""
        steps = [self.order, self.page, self.unchanged]
        await self.connect()
        due, number = first, 0
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            try:
                async with asyncio.timeout(PATIENCE):
                    await steps[number % len(steps)]()
            except (Failure, OSError, EOFError, TimeoutError) as error:
                await self.failed(error)
            else:
                now = time.monotonic()
                self.seen.answered.append((now, now - due))
            number += 1
            due += interval

    async def read_along(self) -> None:
        """One page that stays open; its lines are numbered by the server."""
        await self.connect()
        while True:
            try:
                await self.follow()
            except (Failure, OSError, EOFError, ValueError, TimeoutError) as error:
                await self.failed(error)

    async def failed(self, error: Exception) -> None:
        while True:
            self.seen.failed.append(f"{type(error).__name__}: {error}")
            self.writer.close()
            try:
                return await self.connect()
            except OSError as again:
                error = again
                await asyncio.sleep(0.2)

    async def ask(self, method: str, path: str, *fields: str, content: bool) -> tuple[int, bytes]:
        """One request and its answer: the status, and the content if it is to be read."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", *fields, "", ""]
        self.writer.write("\r\n".join(lines).encode())
        status, *fields_back = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        length = next((int(f.partition(":")[2]) for f in fields_back if f.startswith("content-length:")), 0)
        return int(status.split()[1]), await self.reader.readexactly(length) if content else b""

    async def order(self) -> None:
        status, content = await self.ask("POST", "/order", "Content-Length: 0", content=True)
        if status != 200:
            raise Failure(f"/order: {status}")
        number = json.loads(content)["order"]
        if number in self.seen.orders:
            raise Failure(f"/order: number {number} was given away already")
        self.seen.orders.add(number)

    async def page(self) -> None:
        status, content = await self.ask("GET", "/static/shop.html", content=True)
        if (status, content) != (200, PAGE):
            raise Failure(f"/static/shop.html: {status}, {len(content)} bytes")

    async def unchanged(self) -> None:
        since = "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT"
        status, _ = await self.ask("GET", "/static/shop.html", since, content=False)
        if status != 304:
            raise Failure(f"/static/shop.html, if modified: {status}")

    async def follow(self) -> None:
        """Read a page in chunks for as long as it comes."""
        status, _ = await self.ask("GET", "/ticker", content=False)
        if status != 200:
            raise Failure(f"/ticker: {status}")
        number = 0
        while True:
            async with asyncio.timeout(PATIENCE):
                size = int(await self.reader.readline(), 16)
                chunk = await self.reader.readexactly(size + 2)
            for line in chunk.split():
                number += 1
                if int(line) != number:
                    raise Failure(f"/ticker: line {line.decode()} instead of {number}")


async def main() -> None:
    parser = argparse.ArgumentParser(prog="load.py")
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=40)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rate", type=float, default=400.0)
    options = parser.parse_args()
    address = urlsplit(options.url)
    seen = Seen()
    visitors = [
        Visitor(address.hostname or "127.0.0.1", address.port or 80, seen)
        for _ in range(options.connections + options.streams)
    ]
    first, interval = time.monotonic() + 0.2, options.connections / options.rate
    work = [
        visitor.browse(first + number / options.rate, interval)
        for number, visitor in enumerate(visitors[: options.connections])
    ]
    work += [visitor.read_along() for visitor in visitors[options.connections :]]
    tasks = [asyncio.create_task(each) for each in work]

    ended = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    while not ended.is_set():
        await asyncio.sleep(0.1)
        print(seen.line(), flush=True)
        for task in tasks:
            if task.done():
                task.result()  # a mistake in this program, or no server at all
    for task in tasks:
        task.cancel()


asyncio.run(main())
