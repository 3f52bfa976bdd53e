"""Which of two releases is the older one, where `packaging` cannot be relied on: in the patched process."""

from __future__ import annotations

import re

_RELEASE = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<numbers>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>a|b|c|rc|alpha|beta|pre|preview)[-_.]?(?P<pre_number>\d*))?"
    r"(?:(?:[-_.]?(?:post|rev|r)[-_.]?|-)(?P<post>\d*))?"
    r"(?:[-_.]?dev[-_.]?(?P<dev>\d*))?(?:\+(?P<local>[a-z0-9._-]+))?",
    re.ASCII,
)
_STAGES = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}


def is_older(one: str, other: str) -> bool:
    """Whether a version comes before another one by PEP 440; not if one of them is no such version."""
    keys = _key(one), _key(other)
    return keys[0] is not None and keys[1] is not None and keys[0] < keys[1]


def _key(version: str) -> tuple[object, ...] | None:
    match = _RELEASE.fullmatch(version.strip().lower())
    if match is None:
        return None
    numbers = [int(number) for number in match["numbers"].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    pre = (_STAGES[match["pre"]], int(match["pre_number"] or 0)) if match["pre"] else (9, 0)
    post = int(match["post"] or 0) if match["post"] is not None else -1
    if match["dev"] is not None and not match["pre"] and post < 0:
        pre = (-1, 0)  # before all of its stages
    dev = int(match["dev"] or 0) if match["dev"] is not None else float("inf")
    return int(match["epoch"] or 0), numbers, pre, post, dev
