"""Requests go on: with a pool and retries that are older than the patch, and what their maker asked for holds."""

import poc
from urllib3.util.retry import Retry

HEADERS = {"Cookie": "session=mine", "Authorization": "x", "X-Other": "1"}
chosen = Retry(total=3, remove_headers_on_redirect=["X-Other"])
few = Retry(total=1, redirect=0, raise_on_redirect=False)


def landed(path, **options):
    del poc.seen[:]
    url = f"http://127.0.0.1:{poc.first.server_port}{path}"
    response = poc.pool.request("GET", url, timeout=5, headers=HEADERS, **options)
    return response.status, [set(seen) & {"Cookie", "Authorization", "X-Other"} for seen in poc.seen]


def works():
    return (
        landed("/land") == (200, [set(HEADERS)])
        and landed("/away", retries=chosen) == (200, [{"Cookie", "Authorization"}])
        and landed("/away", retries=chosen.new(total=2)) == (200, [{"Cookie", "Authorization"}])
        and landed("/away", retries=few) == (302, [])
        and chosen.increment("GET", "/").remove_headers_on_redirect == {"x-other"}
    )
