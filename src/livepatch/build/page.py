"""The report of a build as one HTML page: what is refused, what is not consistent, and all else, side by side.

The same build gives the same bytes. Every piece of code is shown once, where it matters most: with
what is refused, else with what is not consistent, else with its module.
"""

from __future__ import annotations

import os.path
from collections.abc import Collection, Iterator, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from livepatch.build.report import (
    ABSENT,
    ADDED,
    AT_COMPLETION,
    CARRIED,
    IMMEDIATE,
    LEFT_OUT,
    NOTED,
    REFUSED,
    VALUE,
    Change,
)
from livepatch.build.sides import Span, opcodes
from livepatch.build.skeleton import skeleton
from livepatch.pages import UNSEEN, count, document, safe, sentence

if TYPE_CHECKING:
    from livepatch.build.pack import Build

#: What a page calls the fates, in its order, and what each means.
_FATES = {
    REFUSED: ("refused", "cannot be carried; as long as there is one, there is no archive"),
    AT_COMPLETION: ("at completion", "changes for all tasks when the transition is over, without consistency"),
    IMMEDIATE: ("immediate", "code that is exchanged for all tasks at once: who is in the old version stays there"),
    CARRIED: ("changed", "code that is exchanged, consistently"),
    VALUE: ("value", "a name that means something else, to each task what belongs to its world"),
    ADDED: ("added", "is there before the transition begins"),
    NOTED: ("note", "no effect on a running process, or none that matters"),
    ABSENT: ("not carried", "in a module that no service imports; where one has, the patch refuses to load"),
    LEFT_OUT: ("left out", "on request"),
}
#: Those that are shown with their code; the others are listed.
_SHOWN = (REFUSED, AT_COMPLETION, IMMEDIATE, CARRIED, VALUE, ADDED)

_CONTEXT = 3  # lines around a change that are not folded
_FOLDED = 4  # at least, or folding is not worth it


def page(build: Build, name: str, archive: str) -> str:
    """The page for a patch of that name; `archive` is the file that it goes to, if it does."""
    return _Page(build, name, os.path.basename(archive)).html()


class _Block:
    """A piece of code, and what is said of it."""

    def __init__(self, file: str, old: Span | None, new: Span | None) -> None:
        self.file = file
        self.old = old
        self.new = new
        self.id = ""
        self.changes: list[Change] = []

    @property
    def title(self) -> str:
        found = dict.fromkeys(change.name or change.kind for change in self.changes)
        return ", ".join(found) if len(found) < 4 else f"{next(iter(found))} and {len(found) - 1} more"

    @property
    def where(self) -> str:
        span = self.new or self.old
        line = span[0] if span else self.changes[0].line
        return f"{self.file}:{line}" if line else self.file


class _Page:
    def __init__(self, build: Build, name: str, archive: str) -> None:
        self._build = build
        self._report = build.report
        self._name = name
        self._archive = archive
        self._blocks = self._made()
        self._refused = [b for b in self._blocks if any(c.fate == REFUSED for c in b.changes)]
        self._late = [b for b in self._blocks if any(c.is_consistent is False for c in b.changes)]

    def _made(self) -> list[_Block]:
        found: dict[object, _Block] = {}
        for change in self._report.of(*_SHOWN):
            old, new = self._build.sides.of(change)
            block = _Block(change.file, old, new)
            block = found.setdefault((change.file, old, new) if old or new else id(change), block)
            block.id = block.id or f"d{len(found)}"
            block.changes.append(change)
        return list(found.values())

    def html(self) -> str:
        body = [*self._head(), *self._of_refused(), *self._of_late()]
        for module, blocks in groupby(sorted(self._blocks, key=_module), _module):
            body += self._of_module(module, list(blocks))
        for fate, title in ((NOTED, "Notes"), (LEFT_OUT, "Left out"), (ABSENT, "Not carried")):
            changes = self._report.of(fate)
            if changes:
                body.append(f"<section><h2>{title}</h2>\n<p>{sentence(_FATES[fate][1])}</p>\n<ul>")
                body += [f"<li>{safe(str(change))}</li>" for change in changes]
                body.append("</ul></section>")
        title = safe(f"{self._name}: {self._verdict()}")
        return document(title, _STYLE, "\n".join(body))

    def _verdict(self) -> str:
        if self._report.refused:
            return f"There is no archive: {count(len(self._report.refused), 'difference')} cannot be carried."
        if self._report.changes_nothing:
            return "There is no archive: nothing changes for a running process."
        changes, modules = len(self._report.of(*_SHOWN)), len(self._report.modules)
        return f"The patch is in {self._archive}: {count(changes, 'change')} in {count(modules, 'module')}."

    def _head(self) -> Iterator[str]:
        """What a reader wants to know first."""
        report = self._report
        yield f"<header><p>livepatch build</p>\n<h1>{safe(self._name)}</h1>"
        releases = [f"{r['name']} {r['from']} → {r['to']}" for r in self._build.distributions]
        if releases or self._build.description:
            yield f"<p>{safe(', '.join(releases) or self._build.description)}</p>"
        kind = "bad" if report.refused else "none" if report.changes_nothing else "good"
        yield f'<p class="verdict {kind}">{safe(self._verdict())}</p>\n<dl>'
        for fate, (_, meaning) in _FATES.items():
            if number := len(report.of(fate)):
                yield f"<dt><span>{number}</span> {_badge(fate)}</dt><dd>{meaning}</dd>"
        yield "</dl></header>"
        links = [("refused", "Refused")] if self._refused else []
        links += [("late", "Not consistent")] if self._late else []
        links += [(f"m-{name}", name or "other files") for name in sorted({_module(block) for block in self._blocks})]
        shown = (f'<a href="#{safe(to)}">{safe(said)}</a>' for to, said in links)
        yield f"<nav>{' · '.join(shown)}</nav>"

    def _of_refused(self) -> Iterator[str]:
        if self._refused:
            yield '<section id="refused"><h2>Refused</h2>\n<p>While there is one of these, there is no archive.</p>'
            for block in self._refused:
                yield from self._block(block)
            yield from self._skeleton()
            yield "</section>"

    def _skeleton(self) -> Iterator[str]:
        text = skeleton(self._build)
        if text:
            yield (
                '<h3 id="skeleton">Hooks to fill in</h3>\n<p>Instances that were made before the patch lack these'
                " attributes, and the source does not tell what they should be. Write the functions in this file"
                " (<code>--skeleton FILE</code> writes it, too) and build again with <code>--hooks FILE</code>.</p>"
                f'\n<pre class="file">{escape(text)}</pre>'
            )

    def _of_late(self) -> Iterator[str]:
        if self._late:
            yield (
                '<section id="late"><h2>Not consistent</h2>\n<p><strong>These changes are not consistent.'
                "</strong> What is marked <em>at completion</em> changes for all tasks at once when the transition is"
                " over: until then new code, too, sees the old value."
            )
            if self._report.immediate:
                yield (
                    " What is marked <em>immediate</em> changes for all tasks at once when it begins, and nobody is"
                    " waited for: a call that runs already ends in the old version."
                )
            if any(change.fate not in (AT_COMPLETION, IMMEDIATE) for change in self._report.not_consistent):
                yield " With the others, a task can see something of the other world, as each says."
            yield "</p>"
            for block in self._late:
                if block not in self._refused:
                    yield from self._block(block)
            yield from _elsewhere([block for block in self._late if block in self._refused])
            yield "</section>"

    def _of_module(self, module: str, blocks: list[_Block]) -> Iterator[str]:
        yield f'<section id="m-{safe(module)}"><h2>{safe(module or "Other files")}</h2>'
        shown = [block for block in blocks if block in self._refused or block in self._late]
        yield from _elsewhere(shown)
        for block in blocks:
            if block not in shown:
                yield from self._block(block)
        yield "</section>"

    def _block(self, block: _Block) -> Iterator[str]:
        yield f'<article id="{block.id}"><h3>{safe(block.title)} <small>{safe(block.where)}</small></h3>\n<ul>'
        for change in sorted(block.changes, key=lambda change: _SHOWN.index(change.fate)):
            what = f"{change.kind} {change.name}".strip() if change.name else change.kind
            yield f"<li>{_badge(change.fate)} {safe(what)}: {safe(change.reason)}"
            if change.hint:
                yield f'<p class="todo"><b>What to do:</b> {safe(change.hint)}</p>'
            yield "</li>"
        yield "</ul>"
        sides = self._build.sides
        old, new = (sides.lines(block.file, span, new=i == 1) for i, span in enumerate((block.old, block.new)))
        if old or new:
            yield f'<div class="code{"" if old and new else " one"}"><div class="run">'
            yield "".join(_label(name, span) for name, span in (("old", block.old), ("new", block.new)) if span)
            yield "</div>"
            yield from _side_by_side(old, new, *((span or (1, 0))[0] for span in (block.old, block.new)))
            yield "</div>"
        yield "</article>"


def _module(block: _Block) -> str:
    return block.changes[0].module


def _label(name: str, span: Span) -> str:
    lines = f"line {span[0]}" if span[0] == span[1] else f"lines {span[0]}–{span[1]}"  # noqa: RUF001
    return f"<span>{name}, {lines}</span>"


def _side_by_side(old: Sequence[str], new: Sequence[str], old_line: int, new_line: int) -> Iterator[str]:
    """The lines of both, in runs of what is the same and what is not."""
    runs = opcodes(list(old), list(new))
    for position, (tag, i1, i2, j1, j2) in enumerate(runs):
        if tag != "equal":
            yield _run("", old[i1:i2], new[j1:j2], old_line + i1, new_line + j1)
            continue
        head = 1 if position == 0 else _CONTEXT  # the line that says what it is
        tail = 0 if position == len(runs) - 1 else _CONTEXT
        parts = [(i1, i2)]
        if i2 - i1 - head - tail >= _FOLDED:
            parts = [(i1, i1 + head), (i1 + head, i2 - tail), (i2 - tail, i2)]
        for number, (start, stop) in enumerate(parts):
            same = old[start:stop], new[start - i1 + j1 : stop - i1 + j1]
            shown = _run(" same", *same, old_line + start, new_line + start - i1 + j1)
            if start < stop:
                folded = f"<details><summary>{stop - start} lines are the same</summary>{shown}</details>"
                yield folded if number == 1 else shown


def _run(kind: str, old: Sequence[str], new: Sequence[str], old_line: int, new_line: int) -> str:
    """One run of lines: the old in a column, the new in another."""
    pairs = len(old) == len(new) and not kind
    cells = []
    for side, lines, others, first in (("old", old, new, old_line), ("new", new, old, new_line)):
        tag = "span" if kind else "del" if side == "old" else "ins"
        shown = (_marked(line, others[i]) if pairs else _code(line) for i, line in enumerate(lines))
        inside = "".join(f'<{tag} data-n="{first + i}">{text}</{tag}>' for i, text in enumerate(shown))
        cells.append(f'<pre class="{side}">{inside}</pre>')
    return f'<div class="run{kind}">{"".join(cells)}</div>'


def _marked(line: str, other: str) -> str:
    """A line with a mark where it differs from another one, if they have most in common."""
    size = min(len(line), len(other))
    head = next((i for i in range(size) if line[i] != other[i]), size)
    tail = next((i for i in range(size - head) if line[-1 - i] != other[-1 - i]), size - head)
    common = line[:head].strip() + line[len(line) - tail :].strip()
    if 2 * len(common) < len(line.strip()):
        return _code(line)
    middle = line[head : len(line) - tail]
    marked = f"<mark>{_code(middle)}</mark>" if middle else ""
    return f"{_code(line[:head])}{marked}{_code(line[len(line) - tail :])}"


def _elsewhere(blocks: Collection[_Block]) -> Iterator[str]:
    if blocks:
        links = (f'<a href="#{block.id}">{safe(block.title)}</a>' for block in blocks)
        yield f"<p>Shown above: {', '.join(links)}.</p>"


def _badge(fate: str) -> str:
    return f'<b class="fate f-{fate.replace(" ", "-")}">{_FATES[fate][0]}</b>'


def _code(line: str) -> str:
    """A piece of a line of code: what would not be seen is told apart from what is written like that."""
    return UNSEEN.sub(lambda found: f"<i>{ascii(found[0])[1:-1]}</i>", escape(line))


_STYLE = """
article { margin: 1.25rem 0 2rem; }
article ul { list-style: none; padding: 0; }
article li { margin: .25rem 0; }
.todo { margin-left: 1.2rem; }
.fate {
  display: inline-block; padding: 0 .45em; border: 1px solid; border-radius: .3em; white-space: nowrap;
  font-size: .8rem; line-height: 1.5; color: var(--none);
}
.f-refused { color: var(--bad); }
.f-at-completion, .f-immediate { color: var(--late); }
.f-carried, .f-added, .f-value { color: var(--good); }
.file { padding: .8rem; border: 1px solid var(--line); background: var(--soft); user-select: all; }
.code { border: 1px solid var(--line); border-radius: .3rem; overflow: hidden; }
.run { display: grid; grid-template-columns: 1fr 1fr; }
.one .run { grid-template-columns: 1fr; }
.one pre:empty { display: none; }
.run > span { padding: .15rem .6rem; background: var(--soft); color: var(--dim); font-size: .8rem; }
.run > :nth-child(2) { border-left: 1px solid var(--line); }
.one .run > * { border-left: 0; }
pre:empty { background: var(--soft); }
pre > * {
  display: block; position: relative; min-height: 1.45em; padding: 0 .5rem 0 5.2em; text-decoration: none;
}
pre > *::before {
  content: attr(data-n); position: absolute; left: 0; width: 3.6em; text-align: right; color: var(--dim);
}
del { background: var(--del); }
ins { background: var(--ins); }
pre > del::after, pre > ins::after { position: absolute; left: 4em; top: 0; content: "+"; color: var(--dim); }
pre > del::after { content: "\\2212"; }
mark { background: var(--ins2); color: inherit; }
del mark { background: var(--del2); }
pre i { outline: 1px solid var(--bad); }
@media (max-width: 52rem) {
  .run { grid-template-columns: 1fr; }
  .run > :nth-child(2) { border-left: 0; }
  .same .old, pre:empty { display: none; }
  pre > * { padding-left: 4.2em; }
  pre > *::before { width: 2.6em; }
  pre > del::after, pre > ins::after { left: 3em; }
}
@media print {
  h2, h3, article > ul { break-after: avoid; }
  del, ins, mark, .run > span { print-color-adjust: exact; }
}
""".strip()
