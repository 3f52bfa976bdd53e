"""The page of a report: the timeline of the transition in every process, who moved when and how, who was in the way.

Most tasks move within a millisecond and the last one after seconds, so time is drawn on a scale that gives each power
of ten the same room. Everything that is drawn is in a table, too.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from livepatch.pages import count, document, safe

if TYPE_CHECKING:
    from .report import Course, Report

#: The ways of moving, in the order of the page: the class that colors one, and what it means.
_WAYS = {
    "stack check": ("check", "seen from outside with none of the functions on its stack"),
    "exit": ("exit", "by itself, when it returned from the outermost of them"),
    "idle": ("idle", "by its event loop, while none of the loop's tasks ran"),
    "ended": ("ended", "did not move: it ended"),
    "force": ("force", "by force, wherever it was: without consistency"),
}
_OUTCOMES = {
    "done": "good",
    "reversed": "none",
    "untouched": "none",
    "unconcerned": "none",
    "ended": "none",
}
#: A table has so many moves at most, those that came last; of marks in a picture there are so many.
_MOVES, _MARKS = 500, 1000

#: The picture, in its own units: its size, and where its axes begin and end.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1000, 190, 46, 985, 22, 138


def page(report: Report) -> str:
    """The whole page."""
    courses = list(report.courses.values())
    taking_part = [course for course in courses if course.begun is not None or course.left or course.runs]
    kind, verdict = _verdict(report, courses)
    body = [*_head(report, kind, verdict), *_overview(report, courses)]
    for course in taking_part:
        body += _process(report, course)
    title = f"{report.operation} {report.patch}: {verdict}"
    return document(safe(title), _STYLE, "\n".join(body))


def _verdict(report: Report, courses: Sequence[Course]) -> tuple[str, str]:
    outcomes = [course.seen.outcome for course in courses]
    done = outcomes.count("done")
    marks = [mark for _, mark in report.marks]
    seconds = _seconds(report.ended - report.begun)
    if report.error is not None and not done:
        said = str(report.error) if isinstance(report.error, OSError) else "interrupted"
        return "bad", f"Nothing was done: {said}"
    if "left" in outcomes:
        return "bad", f"It is not over in {_processes(outcomes.count('left'))}: tasks are still moving."
    if "taken back" in marks:
        return "none", f"It was taken back after {seconds}, and nothing is left of it."
    if done and "forced" in marks:
        return "bad", f"It was ended by force after {seconds}: old and new code may have met."
    if done:
        return "good", f"Done in {_processes(done)}, {seconds} for the whole command."
    return "none", "Nothing was to be done."


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def _head(report: Report, kind: str, verdict: str) -> Iterator[str]:
    yield f"<header><p>livepatch {safe(report.operation)}</p>\n<h1>{safe(report.patch or 'a patch')}</h1>"
    yield f'<p class="verdict {kind}">{safe(verdict)}</p>\n<dl class="facts">'
    facts = {
        "when": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report.when)),
        "command": shlex.join(report.command),
        "version": report.archive.get("version"),
        "file": report.archive.get("file"),
        "sha256": report.archive.get("sha256"),
        "signed by": report.archive.get("signer") or ("nobody" if report.archive else None),
    }
    for name, fact in facts.items():
        if fact:
            yield f"<dt>{name}</dt><dd>{safe(str(fact))}</dd>"
    yield "</dl></header>"


def _overview(report: Report, courses: Sequence[Course]) -> Iterator[str]:
    """A row for each process, and what the ways are."""
    yield '<section><h2>Processes</h2>\n<div class="wide"><table><thead><tr>'
    for name in ("PID", "Outcome", "Tasks", "Transition", *_WAYS, "Command"):
        yield f"<th>{safe(name)}</th>"
    yield "</tr></thead><tbody>"
    for course in courses:
        moved = _counted(course)
        lasted = sum(run.ended - run.began for run in course.runs)
        outcome = course.seen.outcome + (", born meanwhile" if course.seen.born else "")
        linked = f'<a href="#p{course.seen.pid}">{course.seen.pid}</a>' if course.begun else str(course.seen.pid)
        cells = [linked, f'<b class="{_OUTCOMES.get(course.seen.outcome, "bad")}">{safe(outcome)}</b>']
        cells += [str(course.tasks or "-"), _seconds(lasted) if course.runs else "-"]
        cells += [str(moved.get(way) or "-") for way in _WAYS]
        cells += [safe(course.seen.process.title)]
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        if course.seen.error is not None:
            yield f'<tr><td></td><td colspan="{len(cells) - 1}">{safe(str(course.seen.error))}</td></tr>'
    yield '</tbody></table></div>\n<ul class="ways">'
    for way, (color, meaning) in _WAYS.items():
        yield f'<li><i class="{color}"></i> <b>{way}</b>: {meaning}</li>'
    yield "</ul></section>"


def _counted(course: Course) -> dict[str, int]:
    """How many went which way. What ended is known only where moves were recorded."""
    found: dict[str, int] = {}
    for run in course.runs:
        for way, number in run.moved.items():
            found[way] = found.get(way, 0) + number
    for move in course.moves if not course.runs else ():
        found[move["way"]] = found.get(move["way"], 0) + 1
    ended = sum(move["way"] == "ended" for run in course.runs for move in run.moves)
    return {**found, "ended": ended} if course.runs else found


class _Leg(NamedTuple):
    """A part of a transition in one direction: `total` tasks had to move, and `moves` are known. Times are seconds of
    the monotonic clock."""

    title: str
    began: float
    ended: float
    total: int
    over: bool
    moves: Sequence[dict[str, Any]]


def _legs(report: Report, course: Course) -> Iterator[_Leg]:
    for run in course.runs:
        turns = [at for at, mark in report.marks if mark == "taken back" and run.began < at < run.ended]
        turn = turns[0] if turns and run.reversals == 1 else None
        if turn is None:
            title = f"{run.direction.capitalize()}, {run.outcome} after {_seconds(run.ended - run.began)}"
            if run.reversals:
                title += f", with {count(run.reversals, 'change')} of direction"
            yield _Leg(title, run.began, run.ended, run.total, True, run.moves)
            continue
        there = [move for move in run.moves if move["at"] <= turn]
        back = [move for move in run.moves if move["at"] > turn]
        title = f"{run.direction.capitalize()}, taken back after {_seconds(turn - run.began)}"
        yield _Leg(title, run.began, turn, run.total, False, there)
        if there:
            title = f"The way back, completed after {_seconds(run.ended - turn)}"
            yield _Leg(title, turn, run.ended, len(there), True, back)
    if not course.runs and course.left and course.begun is not None:
        title = f"The transition goes on: {course.left[-1][2]} of {count(course.tasks, 'task')} had not moved at last"
        yield _Leg(title, course.begun, report.ended, course.tasks, False, course.moves)


def _process(report: Report, course: Course) -> Iterator[str]:
    seen = course.seen
    yield f'<section id="p{seen.pid}"><h2>Process {seen.pid} <small>{safe(seen.process.title)}</small></h2>'
    legs = list(_legs(report, course))
    for leg in legs:
        yield f"<h3>{safe(leg.title)} <small>{count(leg.total, 'task')}</small></h3>"
        yield from _timeline(report, course, leg)
        yield from _moves(course, leg)
    yield from _blockers(course, legs)
    if course.log:
        yield "<h3>Log</h3>\n<pre>" + "\n".join(safe(line) for line in course.log) + "</pre>"
    yield "</section>"


# -- the picture -------------------------------------------------------------------------------------------------------


class _Scale:
    """Where a moment is, from left to right: linear up to the smallest unit, logarithmic from there."""

    def __init__(self, longest: float) -> None:
        self.longest = max(longest, 0.001)
        self._unit = 0.0001

    def __call__(self, seconds: float) -> float:
        part = math.log1p(max(seconds, 0.0) / self._unit) / math.log1p(self.longest / self._unit)
        return _LEFT + min(part, 1.0) * (_RIGHT - _LEFT)

    def ticks(self) -> Iterator[float]:
        at = 0.001
        while at < self.longest:
            yield at
            at *= 10


def _timeline(report: Report, course: Course, leg: _Leg) -> Iterator[str]:
    if not leg.total:
        return
    began, moves = leg.began, leg.moves
    scale = _Scale(leg.ended - began)
    title = f"Tasks of process {course.seen.pid} that had not moved, over time"
    yield f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{safe(title)}">'
    for at in (0.0, *scale.ticks()):
        x = scale(at)
        yield f'<path class="grid" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>'
        yield f'<text x="{x:.1f}" y="{_HEIGHT - 4}" class="middle">{_seconds(at) if at else "0"}</text>'
    yield f'<text x="{_LEFT - 6}" y="{_TOP + 5}" class="end">{leg.total}</text>'
    yield f'<text x="{_LEFT - 6}" y="{_BOTTOM + 4}" class="end">0</text>'
    yield f'<path class="line" d="{_steps(course, scale, leg)}"/>'
    step = max(1, len(moves) // _MARKS)
    for move in moves[::-step]:
        x, color = scale(move["at"] - began), _WAYS.get(move["way"], ("check", ""))[0]
        label = f"{move['task']}: {move['way']} after {_seconds(move['at'] - began)}"
        yield f'<path class="tick {color}" d="M{x:.1f} {_BOTTOM + 8}v16"><title>{safe(label)}</title></path>'
    marks = [(at, mark) for at, mark in report.marks if began < at < leg.ended]
    for at, _ in marks:
        yield f'<path class="mark" d="M{scale(at - began):.1f} {_TOP - 6}V{_BOTTOM + 26}"/>'
    if marks:  # one comes right after the other
        said = ", ".join(mark for _, mark in marks)
        yield f'<text x="{scale(marks[0][0] - began) - 5:.1f}" y="{_TOP - 8}" class="end">{said}</text>'
    said = "Tasks that had not moved, and below when each did. The scale of time is logarithmic."
    yield f"</svg>\n<figcaption>{said}</figcaption></figure>"


def _steps(course: Course, scale: _Scale, leg: _Leg) -> str:
    """The line of how many are left: by every move if they were recorded, else by every look."""
    points: list[tuple[float, int]] = [(0.0, leg.total)]
    if leg.moves:
        left = max(leg.total, len(leg.moves))
        for at, together in groupby(leg.moves, lambda move: move["at"]):
            left -= sum(1 for _ in together)
            points.append((at - leg.began, min(left, leg.total)))
    else:
        points += [(at - leg.began, left) for at, _, left in course.left if leg.began < at < leg.ended]
    points.append((leg.ended - leg.began, 0 if leg.over else points[-1][1]))
    drawn = [f"M{_LEFT} {_height(points[0][1], leg.total):.1f}"]
    for at, left in points[1:]:
        drawn.append(f"H{scale(at):.1f}V{_height(left, leg.total):.1f}")
    return "".join(drawn)


def _height(left: int, total: int) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * left / max(total, 1)


# -- the tables --------------------------------------------------------------------------------------------------------


def _blockers(course: Course, legs: Sequence[_Leg]) -> Iterator[str]:
    """Who was in the way, the longest first."""
    found = sorted(course.blockers.values(), key=lambda blocker: blocker.first - blocker.last)
    if not found or not legs:
        return
    yield "<h3>In the way</h3>"
    for blocker in found:
        task = blocker.task
        leg = next((leg for leg in reversed(legs) if leg.began <= blocker.last), legs[0])
        said = f"seen from {_seconds(blocker.first - leg.began)} to {_seconds(blocker.last - leg.began)}"
        same = (task["kind"], task["name"])
        moved = [m for m in leg.moves if (m["kind"], m["task"]) == same and m["at"] >= blocker.last]
        if moved:
            said += f", moved after {_seconds(moved[0]['at'] - leg.began)} ({moved[0]['way']})"
        yield f"<article><p><b>{safe(task['kind'])} {safe(task['name'])}</b> <small>{safe(task['origin'])}</small></p>"
        yield f"<p>{safe((task['blocking'] or task['stack'] or ['-'])[-1])} <small>{said}</small></p>"
        if task["hint"]:
            yield f'<p class="todo">{safe(task["hint"])}</p>'
        if task["stack"]:
            lines = (f"<mark>{safe(line)}</mark>" if line in task["blocking"] else safe(line) for line in task["stack"])
            stack = "\n".join(lines)
            yield f"<details><summary>Its stack, innermost first</summary><pre>{stack}</pre></details>"
        yield "</article>"


def _moves(course: Course, leg: _Leg) -> Iterator[str]:
    if not leg.moves:
        why = "" if course.recorded else ": its agent is older, or did not answer in time"
        yield f"<p>Who moved when was not recorded here{why}.</p>"
        return
    shown = leg.moves[-_MOVES:]
    said = count(len(shown), "move") if shown == leg.moves else f"the last {len(shown)} of {len(leg.moves)} moves"
    yield f'<details><summary>Who moved: {said}</summary><div class="wide"><table>'
    yield "<thead><tr><th>After</th><th>Kind</th><th>Task</th><th>Way</th></tr></thead><tbody>"
    for move in shown:
        color = _WAYS.get(move["way"], ("check", ""))[0]
        yield (
            f"<tr><td>{_seconds(move['at'] - leg.began)}</td><td>{safe(move['kind'])}</td><td>{safe(move['task'])}</td>"
            f'<td><i class="{color}"></i> {safe(move["way"])}</td></tr>'
        )
    yield "</tbody></table></div></details>"


def _seconds(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds >= 1:
        return f"{seconds:.1f} s" if seconds % 1 >= 0.05 else f"{seconds:.0f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2g} ms" if seconds > 0 else "0 ms"


_STYLE = """
:root { --check: #2b6cb0; --exit: #17806d; --idle: #8250b0; --ended: #7a828e; --force: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --check: #7ab3f5; --exit: #5fd0b8; --idle: #c9a2f2; --ended: #8a94a3; --force: #ff9189; }
}
h1 { overflow-wrap: anywhere; }
h3 { margin: 1.2rem 0 .4rem; }
.facts dd { color: var(--fore); overflow-wrap: anywhere; }
.facts dt { color: var(--dim); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: normal; white-space: nowrap; }
td { white-space: nowrap; }
td:last-child { min-width: 14rem; white-space: normal; overflow-wrap: anywhere; }
b.good { color: var(--good); }
b.bad { color: var(--bad); }
b.none { color: var(--none); }
.ways { list-style: none; padding: 0; color: var(--dim); }
.ways b { color: var(--fore); font-weight: normal; }
i { display: inline-block; width: .7em; height: .7em; border-radius: .15em; background: var(--check); }
i.exit { background: var(--exit); }
i.idle { background: var(--idle); }
i.ended { background: var(--ended); }
i.force { background: var(--force); }
figure { margin: 1rem 0; }
figcaption { color: var(--dim); font-size: .8rem; }
svg { width: 100%; min-width: 30rem; height: auto; display: block; }
figure { overflow-x: auto; }
svg text { fill: var(--dim); font: 12px system-ui, sans-serif; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.grid { stroke: var(--line); }
.line { stroke: var(--fore); stroke-width: 2; fill: none; stroke-linejoin: round; }
.tick { stroke: var(--check); stroke-width: 2; }
.tick.exit { stroke: var(--exit); }
.tick.idle { stroke: var(--idle); }
.tick.ended { stroke: var(--ended); }
.tick.force { stroke: var(--force); }
.mark { stroke: var(--late); stroke-dasharray: 4 3; }
article { margin: .6rem 0 1rem; }
.todo { color: var(--late); }
pre { padding: .6rem; background: var(--soft); border: 1px solid var(--line); }
pre mark { background: var(--del); color: inherit; }
@media print { i, .tick, .line, mark { print-color-adjust: exact; } }
""".strip()
