"""What the tests of the builder share: small source trees, and what a report says about the step between two."""

import textwrap

from livepatch.build import Report, compare

FATES = ("carried", "immediate", "added", "value", "at completion", "note", "not carried", "refused", "left out")


def files(tree: str | dict[str, str]) -> dict[str, bytes]:
    """A tree; a mere string is the module `pkg.m`."""
    if isinstance(tree, str):
        tree = {"pkg/m.py": tree}
    return {path: textwrap.dedent(content).encode() for path, content in tree.items()}


def report(old: str | dict[str, str], new: str | dict[str, str]) -> Report:
    """The report of the step from one tree to the other."""
    return compare(files(old), files(new))


def said(old: str | dict[str, str], new: str | dict[str, str]) -> dict[str, list[str]]:
    """Fate -> names, for the fates that there are."""
    found = report(old, new)
    return {fate: [change.name for change in found.of(fate)] for fate in FATES if found.of(fate)}


def refusals(old: str | dict[str, str], new: str | dict[str, str]) -> list[str]:
    """The refusals, as they are printed."""
    return [str(change) for change in report(old, new).refused]
