"""Where the two versions of a source come from, and what can be done with such a step before it is compared.

    step = together([package("requests", "2.30.0", "2.31.0"), package("urllib3", "2.0.5", "2.0.6")])
    step = step.vendored("pip._vendor")

Several steps make one: then a function of one package that needs a new one of the other is understood.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

from livepatch.build import diff, fetch, git, vendored
from livepatch.build.report import REFUSED, Change
from livepatch.build.sources import Tree, module_name, read_tree
from livepatch.build.unpack import Release, unpack
from livepatch.core.model import LivepatchError

Path_ = str | os.PathLike[str]


@dataclass(frozen=True)
class Step:
    """Two versions of a source, sorted, and what is known of them.

    `distributions` names the packages whose releases they are, each with the keys name, from and to. `refused` is
    what is known already to be impossible.
    """

    old: Tree
    new: Tree
    distributions: tuple[Mapping[str, str], ...] = ()
    requires_python: str | None = None
    version: str = ""
    description: str = ""
    refused: tuple[Change, ...] = ()

    def vendored(self, prefix: str, beside: Collection[str] = ()) -> Step:
        """The same step in a vendored copy below the package `prefix`; `beside` are other packages vendored there.

        Raises LivepatchError (EINVAL) if the prefix is no name.
        """
        vendored.check_prefix(prefix)
        names = {module.partition(".")[0] for tree in (self.old, self.new) for module in tree.module_names()}
        names |= set(beside)
        folder = prefix.replace(".", "/") + "/"
        found: list[Change] = []
        for path in sorted(self.old.python.keys() & self.new.python.keys()):
            before, after = self.old.python[path], self.new.python[path]
            for package, line in vendored.unknown_imports(before, after, names) if before != after else ():
                reason = f"the new import of {package}: it is not known whether that is vendored in {prefix}, too"
                hint = f"if it is: --vendored-with {package}"
                found.append(
                    Change(REFUSED, module_name(folder + path), package, folder + path, line, "import", reason, hint)
                )
        old, new = (_moved(tree, folder, prefix, names) for tree in (self.old, self.new))
        shown = ", ".join(f"{d['name']} {d['from']} -> {d['to']}" for d in self.distributions)
        # Which release of the package is installed beside says nothing about the copy.
        description = f"{shown}, vendored in {prefix}." if shown else ""
        return replace(
            self, old=old, new=new, distributions=(), description=description, refused=(*self.refused, *found)
        )


def _moved(tree: Tree, folder: str, prefix: str, names: Collection[str]) -> Tree:
    python = {folder + path: vendored.rewritten(content, prefix, names) for path, content in tree.python.items()}
    compiled, data = ({folder + path: part[path] for path in part} for part in (tree.compiled, tree.data))
    return Tree(python, compiled, data, tree.outside)


def trees(old: Path_, new: Path_) -> Step:
    """Two folders, or a wheel or source distribution instead of either.

    Raises LivepatchError if one can be neither, or is itself a package.
    """
    before, after = _release(Path(old)), _release(Path(new))
    if not before.name or fetch.canonical(before.name) != fetch.canonical(after.name):
        return Step(Tree.sort(before.files), Tree.sort(after.files))
    return _releases(before, after)


def _release(path: Path) -> Release:
    return unpack(path) if path.is_file() else Release("", "", read_tree(path), None)


def patched(text: str, directory: Path_) -> Step:
    """A folder, and what a unified diff makes of it.

    Raises LivepatchError (EINVAL) naming file and line if the diff does not apply.
    """
    before = read_tree(directory)
    return Step(Tree.sort(before), Tree.sort(diff.apply(text, before)))


def package(name: str, old: str, new: str) -> Step:
    """Two releases of a package from the package index; raises as `fetch.fetch`."""
    fetch.check(name, old, new)
    with ThreadPoolExecutor(2) as pool:  # pip spends its time waiting, and starting
        before, after = pool.map(fetch.fetch, (name, name), (old, new))
    return _releases(before, after)


def _releases(before: Release, after: Release) -> Step:
    distribution = {"name": after.name, "from": before.version, "to": after.version}
    old, new = Tree.sort(before.files), Tree.sort(after.files)
    return Step(old, new, (distribution,), after.requires_python, after.version)


def revisions(span: str, directory: Path_ = ".") -> Step:
    """`REV1..REV2` of the git repository that a folder is in, and of it only what is in that folder.

    Raises as `git.revisions`.
    """
    before, after, version = git.revisions(span, directory)
    return Step(Tree.sort(before), Tree.sort(after), version=version)


def together(steps: Sequence[Step]) -> Step:
    """One step out of several; of none, one that changes nothing.

    Raises LivepatchError (EINVAL) if two change the same file, each in its own way.
    """
    if len(steps) == 1:
        return steps[0]
    versions = {step.version for step in steps}
    requires = dict.fromkeys(step.requires_python for step in steps if step.requires_python)
    descriptions = [step.description for step in steps if step.description]
    sides = {side: {field.name: _merged(steps, field.name, side) for field in fields(Tree)} for side in ("old", "new")}
    return Step(
        Tree(**sides["old"]),
        Tree(**sides["new"]),
        tuple(distribution for step in steps for distribution in step.distributions),
        ", ".join(requires) or None,
        versions.pop() if len(versions) == 1 else "",
        " ".join(descriptions),
        tuple(change for step in steps for change in step.refused),
    )


def _merged(steps: Sequence[Step], part: str, side: str) -> dict[str, bytes]:
    """The files of one kind and one side; of several at one path, the ones of the step that changes them."""
    pairs: dict[str, list[tuple[bytes | None, bytes | None]]] = {}
    for step in steps:
        old, new = getattr(step.old, part), getattr(step.new, part)
        for path in old.keys() | new.keys():
            pairs.setdefault(path, []).append((old.get(path), new.get(path)))
    found: dict[str, bytes] = {}
    for path, versions in sorted(pairs.items()):
        changed = [pair for pair in versions if pair[0] != pair[1]]
        if len(set(changed)) > 1 and part != "outside":
            raise LivepatchError(errno.EINVAL, f"Two of the sources have the file {path}, and it changes in both.")
        content = (changed or versions)[0][side == "new"]
        if content is not None:
            found[path] = content
    return found
