"""CVE-2024-47874: a multipart field without a file name is kept in memory at any size."""
import asyncio
import http.client
import socket
import threading
import time

import anyio.abc
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


for module in (anyio, anyio.abc):  # namespaces that fill themselves with what is used
    for name in dir(module):
        getattr(module, name)


async def upload(request):
    form = await request.form()
    return PlainTextResponse(str(len(form["f"])))


app = Starlette(routes=[Route("/", upload, methods=["POST"])])


def serve(app):
    """uvicorn in a thread of its own; returns the port."""
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen(50)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", http="h11", ws="none", loop="asyncio"))
    threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[s])), daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return s.getsockname()[1]


port = serve(app)


def post(n):
    body = b'--XX\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + b"a" * n + b"\r\n--XX--\r\n"
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    c.request("POST", "/", body, {"Content-Type": "multipart/form-data; boundary=XX"})
    r = c.getresponse()
    data = r.read()
    c.close()
    return r.status, data


def vulnerable() -> bool:
    n = 1500000
    return post(n) == (200, b"%d" % n)


def works() -> bool:
    return post(1000) == (200, b"1000")


if __name__ == "__main__":
    print("vulnerable" if vulnerable() else "fixed")
