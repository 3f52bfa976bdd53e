"""One application, for WSGI and for ASGI. No function of this file is patched.

An answer says which versions a request has met: `chain` within one call of a patched function, `edges` in calls before
and after it. The body leaves in two parts, and the second edge is met in the middle of it.
"""

import asyncio
import json
import os
import time

import work


def report(edges, chain):
    return json.dumps({"pid": os.getpid(), "edges": edges, "chain": chain}).encode()


def parts(first, chain, pause):
    """The body in two parts, before and after a pause."""
    yield report(["old", "old"], ["old"] * len(chain))[:10]
    pause()
    yield report([first, work.edge()], chain)[10:]


def headers(first, chain):
    return [("Content-Type", "application/json"), ("Content-Length", str(len(report([first, first], chain))))]


def answer():
    """A whole request at once, for frameworks."""
    first, chain = work.edge(), work.answer()
    time.sleep(work.PAUSE)
    return report([first, work.edge()], chain)


async def answer_later(sleep):
    first, chain = work.edge(), await work.answer_later(sleep)
    await sleep(work.PAUSE)
    return report([first, work.edge()], chain)


def wsgi(environ, start_response):
    first, chain = work.edge(), work.answer()
    start_response("200 OK", headers(first, chain))
    return parts(first, chain, lambda: time.sleep(work.PAUSE))


def serving(sleep):
    """The application for ASGI, with the `sleep` of the library that is to run it."""

    async def serve(scope, receive, send):
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        if scope["type"] == "websocket":
            return await talk(receive, send, sleep)
        first, chain = work.edge(), await work.answer_later(sleep)
        named = [(name.lower().encode(), value.encode()) for name, value in headers(first, chain)]
        await send({"type": "http.response.start", "status": 200, "headers": named})
        more = True
        for part in parts(first, chain, lambda: None):
            await send({"type": "http.response.body", "body": part, "more_body": more})
            await sleep(work.PAUSE)
            more = False

    return serve


asgi = serving(asyncio.sleep)


async def crossing(scope, receive, send):
    """A request that does a part of its work in a thread of a pool."""
    first, chain = work.edge(), await asyncio.to_thread(work.answer)
    body = report([first, await asyncio.to_thread(work.edge)], chain)
    named = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": named})
    await send({"type": "http.response.body", "body": body})


async def talk(receive, send, sleep):
    """Each message is answered as a request is; between two of them the task is suspended here."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "bytes": await answer_later(sleep)})


async def lifespan(receive, send):
    """Suspended here, in the application, from the first to the last moment of the server."""
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": message["type"] + ".complete"})
    await send({"type": "lifespan.shutdown.complete"})
