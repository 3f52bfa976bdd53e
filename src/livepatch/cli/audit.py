"""The command that shows the audit record; `livepatch/observe/trail.py` writes it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import click

from livepatch.attach.replies import visible
from livepatch.core.model import LivepatchError
from livepatch.observe import audit

from .common import DONE, REFUSED, json_option, output


@click.command("audit")
@click.option("--verify", is_flag=True, help="Say whether every record follows from the one before it.")
@click.option(
    "--contains",
    metavar="HASH",
    help="With --verify: a record with this hash, which an earlier --verify has given, must be there.",
)
@click.option("--file", type=click.Path(path_type=Path), help="Another record, such as one that was rotated away.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Show only the last N operations.")
@json_option
def audit_command(verify: bool, contains: str | None, file: Path | None, last: int | None) -> int:
    """Show who changed which processes, when and with what: the record that every command writes.

    It is /var/log/livepatch/audit.jsonl of root, ~/.local/state/livepatch/audit.jsonl of a user, or what
    LIVEPATCH_AUDIT names. An operation without an outcome is still running, or was killed.

    \b
    --verify ends with 1 if a record was changed, removed or put in, and tells the hash of the last one. Keep that
    elsewhere: --contains shows that nothing up to there was cut off or made anew.
    """
    if contains is not None and not verify:
        raise click.UsageError("--contains belongs to --verify.")
    path = str(file) if file is not None else _path()
    try:
        lines = audit.read(path)
    except FileNotFoundError:
        raise LivepatchError(errno.ENOENT, f"There is no audit record {path}.") from None
    return _verified(path, lines, contains) if verify else _shown(lines, last)


def _path() -> str:
    try:
        path = audit.path()
    except LivepatchError as error:
        raise LivepatchError(error.errno or errno.EINVAL, f"No audit record: {error}.") from None
    if path is None:
        raise LivepatchError(errno.ENOENT, f"{audit.VARIABLE} says that there is none; name a record with --file.")
    return path


def _verified(path: str, lines: list[audit.Line], contains: str | None) -> int:
    problems = [line.problem for line in lines if line.problem]
    if contains is not None and contains not in {line.hash for line in lines}:
        problems.append(f"no record has the hash {contains}: what was written up to there was cut off or made anew")
    head = lines[-1].hash if lines else audit.BEGINNING
    for problem in problems:
        output.warn(f"{path}: {problem}.")
    if not problems:
        noun = "record" if len(lines) == 1 else "records"
        output.say(f"{path}: {len(lines)} {noun}, each follows from the one before.")
        output.say(f"The last one has the hash {head}")
    output.result({"file": path, "records": len(lines), "head": head, "problems": problems})
    return REFUSED if problems else DONE


def _shown(lines: list[audit.Line], last: int | None) -> int:
    """An intent and its outcome are one operation; what came in the middle is an operation of its own."""
    operations: list[dict[str, Any]] = []
    for line in lines:
        if line.problem:
            output.warn(f"{line.problem}; `livepatch audit --verify` tells more.")
        record = visible(line.record)
        if record is None:
            continue
        begun = [one for one in operations if one["id"] == record.get("id") and one["outcome"] is None]
        if record.get("phase") == "outcome" and begun:
            for one in begun:
                one["outcome"] = record
        else:
            outcome = record if record.get("phase") != "intent" else None
            operations.append({"id": record.get("id"), "intent": record, "outcome": outcome})
    if last is not None:
        operations = operations[-last:]
    if operations:
        output.table(["TIME", "WHO", "OPERATION", "PATCH", "WHERE", "OUTCOME"], [_row(one) for one in operations])
    else:
        output.say("Nothing is recorded.")
    output.result(operations)
    return DONE


def _row(operation: dict[str, Any]) -> list[str]:
    record, outcome = operation["intent"], operation["outcome"]
    who, patch = _dict(record.get("who")), {**_dict(record.get("patch")), **_dict(_dict(outcome).get("patch"))}
    by = str(who.get("user", "?")) + (f" ({who['login']})" if who.get("login") not in (None, who.get("user")) else "")
    name = " ".join(str(patch[key]) for key in ("name", "version") if patch.get(key)) or str(patch.get("file", "-"))
    if "sha256" in patch:
        name += f" {str(patch['sha256'])[:12]}"
    targets = _targets(outcome) or _targets(record)
    where = " ".join(str(target.get("pid")) for target in targets) or str(record.get("path", "-"))
    return [str(record.get("time", "?"))[:19], by, str(record.get("operation")), name, where, _outcome(record, outcome)]


def _outcome(record: dict[str, Any], outcome: dict[str, Any] | None) -> str:
    if outcome is None:
        return "none: it is still running, or was killed"
    if record.get("phase") == "refused":
        return f"refused: {outcome.get('error')}"
    words = [str(target.get("outcome")) for target in _targets(outcome) if target.get("outcome")]
    counted = ", ".join(word if len(words) == 1 else f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    if outcome.get("error"):
        return f"{counted}: {outcome['error']}" if counted else str(outcome["error"])
    return counted or "done"


def _targets(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    found = _dict(record).get("targets")
    return [target for target in found if isinstance(target, dict)] if isinstance(found, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
