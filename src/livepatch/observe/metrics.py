"""The state of processes as Prometheus reads it: text, made from one look at each.

The format is written here and not by a library: it is three kinds of lines, and a collector starts this command every
few seconds. A process that cannot be asked is `livepatch_up 0` and the reason, and keeps nobody from the others; one
without an agent has no patches, and is told apart.

Seconds are seconds, counters begin with the process. Patches and processes are labels, so the number of series is
that of the patches times that of the processes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from livepatch.attach.client import Client, NotPrepared, Unreachable
from livepatch.core.model import LivepatchError

#: Seconds that a process may take for each answer, and how many are asked at once.
PATIENCE, AT_ONCE = 2.0, 32

#: The name of every metric without `livepatch_`, its type, and what it means; in this order they are written.
METRICS = {
    "processes": ("gauge", "Processes that were looked at."),
    "up": ("gauge", "1 if the process could be asked or has no agent, 0 if it could not be asked."),
    "unreachable": ("gauge", "1 for a process that could not be asked, with the name of the error."),
    "agent": ("gauge", "1 if an agent is in the process, 0 if none is and so no patch."),
    "process_info": ("gauge", "1, with what the process is."),
    "process_start_time_seconds": ("gauge", "When the process was started, in seconds since the epoch."),
    "patch_info": ("gauge", "1 for every patch that is loaded, enabled or not, with its version."),
    "patch_enabled": ("gauge", "1 if the patch is enabled or about to be, 0 if it is disabled or about to be."),
    "patch_in_transition": ("gauge", "1 while tasks are still moving to the patch or away from it."),
    "patch_forced": ("gauge", "1 if the patch was taken away by force, so that it can never be unloaded."),
    "patch_functions": ("gauge", "Functions that are patched, in modules that are imported."),
    "transition_seconds": ("gauge", "For how long the running transition has lasted."),
    "transition_tasks": ("gauge", "Tasks that the running transition found."),
    "transition_tasks_left": ("gauge", "Tasks that have not moved yet in the running transition."),
    "last_transition_seconds": ("gauge", "How long the last transition of the patch took."),
    "last_transition_age_seconds": ("gauge", "For how long the last transition of the patch has been over."),
    "last_transition_tasks": ("gauge", "Tasks that the last transition of the patch found."),
    "transition_duration_seconds": ("summary", "Transitions that are over, by how they ended, and how long they took."),
    "reversals_total": ("counter", "Transitions that were turned round in the middle."),
    "tasks_moved_total": ("counter", "Tasks that have moved, by the way they took."),
    "refusals_total": ("counter", "Requests that were refused, by what was asked for and why."),
    "forced_total": ("counter", "Transitions that were ended by force."),
    "tainted": ("gauge", "1 if a transition was ever ended by force, so that old and new code may have met."),
}


class Sample(NamedTuple):
    """One value. `suffix` is what a summary adds to the name."""

    metric: str
    labels: dict[str, str]
    value: float
    suffix: str = ""


class Look(NamedTuple):
    """What there is to say of a process, and why it could not be asked, if so."""

    pid: int
    samples: list[Sample]
    error: LivepatchError | None


def look(pids: Sequence[int]) -> list[Look]:
    """Ask all processes, at the same time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(_ask, dict.fromkeys(pids)))


def text(looks: Iterable[Look]) -> str:
    """All of it, in the text format of Prometheus."""
    looks = list(looks)
    samples = [Sample("processes", {}, len(looks)), *(sample for one in looks for sample in one.samples)]
    lines = []
    for metric, (kind, meaning) in METRICS.items():
        found = [sample for sample in samples if sample.metric == metric]
        if found:
            lines.append(f"# HELP livepatch_{metric} {meaning}")
            lines.append(f"# TYPE livepatch_{metric} {kind}")
            lines += map(_line, found)
    return "\n".join(lines) + "\n"


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
    value = repr(sample.value) if isinstance(sample.value, float) else str(int(sample.value))
    return f"livepatch_{sample.metric}{sample.suffix}{{{labels}}} {value}".replace("{} ", " ")


def _escaped(value: str) -> str:
    # What is no text (a command line may be anything) must not make the whole scrape unreadable.
    value = value.encode("utf-8", "replace").decode()
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _ask(pid: int) -> Look:
    label = {"pid": str(pid)}
    try:
        with Client(pid, timeout=PATIENCE) as client:
            samples = [*_of_process(client), *_of_patches(client), *_of_history(client)]
        up = [Sample("up", {}, 1), Sample("agent", {}, 1)]
        return Look(pid, [sample._replace(labels=label | sample.labels) for sample in up + samples], None)
    except Unreachable as error:
        return _unreachable(label, error)
    except NotPrepared as error:
        info = {**label, "python": str(error.process.python), "agent": "", "command": error.process.title}
        known = [Sample("process_info", info, 1)]
        return Look(pid, [Sample("up", label, 1), Sample("agent", label, 0), *known], None)
    except LivepatchError as error:
        return _unreachable(label, error)


def _unreachable(label: dict[str, str], error: LivepatchError) -> Look:
    reason = {**label, "reason": errno.errorcode.get(error.errno or 0, "?")}
    return Look(int(label["pid"]), [Sample("up", label, 0), Sample("unreachable", reason, 1)], error)


def _of_process(client: Client) -> list[Sample]:
    hello = client.hello
    info = {"python": hello["python"], "agent": hello["version"], "command": client.process.title}
    return [Sample("process_info", info, 1), Sample("process_start_time_seconds", {}, float(hello["started"]))]


def _of_patches(client: Client) -> list[Sample]:
    samples = []
    for patch in client.call("list", timeout=PATIENCE):
        label = {"patch": patch["name"]}
        patched = [obj for obj in patch["objects"] if obj["patched"]]
        samples += [
            Sample("patch_info", {**label, "version": patch["version"]}, 1),
            Sample("patch_enabled", label, patch["enabled"]),
            Sample("patch_in_transition", label, patch["transition"]),
            Sample("patch_forced", label, patch["forced"]),
            Sample("patch_functions", label, sum(len(obj["functions"]) for obj in patched)),
        ]
        if patch["transition"]:
            direction = {**label, "direction": "patching" if patch["enabled"] else "unpatching"}
            samples += [
                Sample("transition_seconds", direction, float(patch["seconds"])),
                Sample("transition_tasks", direction, patch["total"]),
                Sample("transition_tasks_left", direction, patch["left"]),
            ]
    return samples


def _of_history(client: Client) -> list[Sample]:
    try:
        history: dict[str, Any] = client.call("history", timeout=PATIENCE)
    except LivepatchError as error:
        if error.errno != errno.ENOSYS:
            raise
        return []  # an older agent keeps none
    samples = []
    for over in {over["patch"]: over for over in history["transitions"]}.values():  # of each patch the last one
        label = {"patch": over["patch"], "direction": over["direction"], "outcome": over["outcome"]}
        samples += [
            Sample("last_transition_seconds", label, float(over["ended"] - over["began"])),
            Sample("last_transition_age_seconds", label, float(history["now"] - over["ended"])),
            Sample("last_transition_tasks", label, over["total"]),
        ]
    for total in history["totals"]:
        label = {"direction": total["direction"], "outcome": total["outcome"]}
        samples.append(Sample("transition_duration_seconds", label, float(total["seconds"]), "_sum"))
        samples.append(Sample("transition_duration_seconds", label, total["count"], "_count"))
    samples += [Sample("tasks_moved_total", {"way": way}, count) for way, count in history["moved"].items()]
    for refusal in history["refusals"]:
        label = {"operation": refusal["operation"], "reason": refusal["errno"]}
        samples.append(Sample("refusals_total", label, refusal["count"]))
    samples += [
        Sample("reversals_total", {}, history["reversals"]),
        Sample("forced_total", {}, len(history["forced"])),
        Sample("tainted", {}, bool(history["forced"])),
    ]
    return samples
