"""A request that does a part of its work in a thread of a pool: with `consistency="boundary"` that is one request."""

from pathlib import Path

import pytest
from tests.servers.harness import History, patch_by_hand
from tests.servers.test_http import UVICORN, WAYS, Way, served


@pytest.mark.slow
@pytest.mark.parametrize("library", ["asyncio", "django"])
def test_a_request_that_crosses_threads_ends_as_it_began(library: str, tmp_path: Path) -> None:
    """The thread is another task, and may have moved already."""
    if library == "asyncio":
        way = Way(f"{UVICORN} --lifespan off app:crossing")
    else:
        way = WAYS["django-asgi"]._replace(urls=("/crossing",))
    patch = patch_by_hand(tmp_path, options='consistency="boundary"')
    with served(way) as site, site.visited() as customers:
        history = History(site.pids(), patch, customers)
        history.go(10)
    history.check(kept=True, boundary=True)
