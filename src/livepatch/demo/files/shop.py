"""The service of the demo: a small shop, as anybody would write it. It knows nothing of livepatch."""
# mypy: ignore-errors

import asyncio
import itertools

from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

orders = itertools.count(1)  # in memory: a restart would begin anew


async def order(request):
    await asyncio.sleep(0.001)  # the database
    return JSONResponse({"order": next(orders)})


async def ticker(request):
    """A page that stays open: one line ten times a second, for as long as somebody reads."""

    async def lines():
        for number in itertools.count(1):
            yield f"{number}\n"
            await asyncio.sleep(0.1)

    return StreamingResponse(lines(), media_type="text/plain")


app = Starlette(
    routes=[
        Route("/order", order, methods=["POST"]),
        Route("/ticker", ticker),
        Mount("/static", StaticFiles(directory="static")),
    ]
)
