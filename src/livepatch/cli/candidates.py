"""What may stand at a place of a command line, for the shell to complete it.

Nobody waits for this: it reads `/proc` and folders, and asks agents that are there for what `livepatch list` shows,
all at once and not for long. Nothing is attached to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

#: Seconds that an agent may take, and how many are asked at once.
_PATIENCE, _AT_ONCE = 0.2, 32
_TITLE = 70

Items = list[CompletionItem[str]]

#: Which patches a command can be about.
_MEANT: dict[str | None, Callable[[dict[str, Any]], bool]] = {
    "disable": lambda patch: patch["enabled"],
    "enable": lambda patch: patch["transition"] and not patch["enabled"],
    "force": lambda patch: patch["transition"],
    "unload": lambda patch: not patch["enabled"] and not patch["transition"],
}


def archives(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Files that are archives."""
    return [CompletionItem(".livepatch", type="suffix")]


def patch_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Archives, and patches written by hand."""
    return [CompletionItem(suffix, type="suffix") for suffix in (".livepatch", ".py")]


def programs(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """A program first, then anything."""
    return [CompletionItem(incomplete, type="file" if ctx.params.get("command") else "command")]


def processes(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Python processes, with their command lines; where a patch is named, those that it is about."""
    from livepatch.attach.processes import pythons

    given = ctx.params.get(param.name or "") or ()
    found = [each for each in pythons() if each.open and str(each.pid).startswith(incomplete)]
    if isinstance(given, tuple):
        found = [each for each in found if each.pid not in given]
    if ctx.info_name in _MEANT and ctx.params.get("name"):
        known = _asked([each.pid for each in found])
        name, meant = ctx.params["name"], _MEANT[ctx.info_name]
        found = [each for each in found if any(one["name"] == name and meant(one) for one in known[each.pid])]
    return [CompletionItem(str(each.pid), help=each.title[:_TITLE]) for each in found]


def patches(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """The names of patches that the command can be about, in the processes that are named, or in any."""
    from livepatch.attach.processes import pythons
    from livepatch.fleet.selection import Selection
    from livepatch.screens.words import state_of

    chosen = Selection(*(ctx.params.get(key) or () for key in ("pids", "trees", "names")))
    pids = list(chosen.pids) + ([each.pid for each in chosen.find()] if chosen.grows else [])
    if chosen == Selection():
        pids = [each.pid for each in pythons() if each.open]
    meant = _MEANT[ctx.info_name]
    states: dict[str, list[str]] = {}
    for pid, known in _asked(pids).items():
        for patch in known:
            if patch["name"].startswith(incomplete) and meant(patch):
                states.setdefault(patch["name"], []).append(f"{state_of(patch)} in {pid}")
    return [CompletionItem(name, help=", ".join(where)[:_TITLE]) for name, where in sorted(states.items())]


def installed_patches(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """The names of patches that are installed."""
    from livepatch.archive import format, installed
    from livepatch.core.model import LivepatchError

    found: dict[str, str] = {}
    for folder in installed.folders():
        for file in installed.files(folder):
            try:
                manifest = format.read(file.data).manifest
            except LivepatchError:
                continue
            found.setdefault(manifest.name, manifest.version)
    return [CompletionItem(name, help=version) for name, version in found.items() if name.startswith(incomplete)]


def _asked(pids: list[int]) -> dict[int, list[dict[str, Any]]]:
    """The patches of those in which an agent answers at once."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(pids, pool.map(_patches_of, pids), strict=True))


def _patches_of(pid: int) -> list[dict[str, Any]]:
    from livepatch.attach.client import Client
    from livepatch.core.model import LivepatchError

    try:
        with Client(pid, timeout=_PATIENCE) as client:
            found: list[dict[str, Any]] = client.call("list", timeout=_PATIENCE)
            return found
    except LivepatchError:
        return []
