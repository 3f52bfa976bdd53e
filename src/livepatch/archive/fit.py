"""From an archive to a patch for this process, with proof that it fits.

Both sources are compiled by the interpreter that will run them. The old one is compared with the live code of
every function that the patch changes: any difference refuses the patch, and the sentence says which. So it
does not matter which release is installed, or what a vendor changed elsewhere in it.

`bind` changes nothing in live modules; unless it is a dry run, it imports what the new code will import. The
rest is done by the callbacks of the patch, under the registry's mutex. Before the functions are redirected,
what is new is added where old code cannot see it (`additions`), and names that change get their new values
(`constants`), which each task sees when it has moved; when the patch is gone, all of it is taken back. The callbacks
in the archive's hooks (`byhand`) run in between: after what is added and set, and before it is taken back.
"""

from __future__ import annotations

import builtins
import errno
import linecache
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, ModuleType

from livepatch.archive.additions import Additions
from livepatch.archive.arrivals import Arrivals
from livepatch.archive.bases import Bases
from livepatch.archive.branches import Branches
from livepatch.archive.byhand import Hooks, keep_source
from livepatch.archive.constants import Constants
from livepatch.archive.defaults import Defaults
from livepatch.archive.effects import Effects
from livepatch.archive.enums import Enums
from livepatch.archive.format import Archive, FunctionEntry, ObjectEntry, refusal
from livepatch.archive.members import Members
from livepatch.archive.pieces import NewSource, find_function
from livepatch.archive.signature import changes_signature, new_attributes
from livepatch.archive.switch import flavour_of, retired
from livepatch.archive.versions import is_older
from livepatch.core import codes, lists, redirect, resolve
from livepatch.core import values as live_values
from livepatch.core.carriers import functions_of
from livepatch.core.codes import Definition
from livepatch.core.kind import UNPATCHED
from livepatch.core.model import Body, Callbacks, Func, LivepatchError, Object, Patch, Value
from livepatch.core.symbols import Tables, front_code, loaded_module


def bind(archive: Archive, *, dry: bool = False, early: bool = False) -> Patch:
    """The patch of an archive, ready to be enabled here or, if `dry`, to be checked.

    Raises LivepatchError: ENOENT if none of its modules is imported in this process (unless it comes `early`, and waits
    for them), EINVAL if the archive cannot be compiled here or differs from the live code, ESTALE if it would take
    the place of a patch for a later release.
    """
    manifest = archive.manifest
    _check_newer(archive)
    for name in manifest.absent:
        if name in sys.modules or _is_main(name, name.replace(".", "/") + ".py"):
            sentence = f"'{name}' is imported here, and the patch does not carry what the release changes in it."
            raise refusal(sentence)
    hooks = Hooks(archive)
    new = [(e, _compiled(archive.new[e.path], f"<livepatch {manifest.name}>/{e.path}")) for e in manifest.modules]
    arrivals = Arrivals([(entry, archive.new[entry.path], source) for entry, source in new], replace=manifest.replace)
    added: set[tuple[int, str]] = set()  # by all of them together
    values: list[Value] = []
    modules = [_Module(manifest.name, entry, archive, hooks, arrivals, added, values) for entry in manifest.objects]
    mains = [entry for entry in manifest.objects if _is_main(entry.module, entry.path)]
    modules += [_Module(manifest.name, entry, archive, hooks, arrivals, added, values, main=True) for entry in mains]
    if not early and not any(module.live() for module in modules):
        names = ", ".join(entry.module for entry in manifest.objects)
        raise LivepatchError(errno.ENOENT, f"None of the modules that the patch changes is imported here: {names}.")
    if not dry:
        _import_for(modules)
    present = [(module, live) for module in modules if (live := module.live()) is not None]
    tables = Tables([live for _, live in present], before=manifest.replace)
    for module, live in present:
        module.verify(live, tables)
        module.branches.verify(live, dry=dry)
    if not dry:
        hooks.load()
        if all(patch.name != manifest.name for patch in lists.listed):  # or it is about to be refused
            _releases[manifest.name] = manifest.distributions
    for module in modules:
        module.object.instances = hooks.instances(module.name)
    return Patch(
        manifest.name,
        [module.object for module in modules],
        replace=manifest.replace,
        consistency=manifest.consistency,
        states=manifest.states,
        version=manifest.version,
        description=manifest.description,
    )


def _check_newer(archive: Archive) -> None:
    """A cumulative patch takes the place of others, whatever they are for; not by mistake of one for a later release.

    One that is put in front of others needs no such check: it would find another code than it was built for.
    """
    for patch in lists.listed if archive.manifest.replace else ():
        for had in _releases.get(patch.name, ()):
            for new in archive.manifest.distributions:
                if new["name"] == had["name"] and is_older(new["to"], had["to"]):
                    sentence = (
                        f"'{archive.manifest.name}' makes {new['name']} {new['to']}, and '{patch.name}', whose place it"
                        f" would take, makes it {had['to']}; if that is meant, disable '{patch.name}' first."
                    )
                    raise LivepatchError(errno.ESTALE, sentence)


def _is_main(name: str, path: str) -> bool:
    """Whether a module is the main program: run with `-m`, or as a script of that name.

    It can be imported under its own name as well, and then is there twice.
    """
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":  # it is that for a folder or a zip that is run
        return bool(spec.name == name)
    file = os.path.abspath(getattr(main, "__file__", None) or "")
    return file.endswith(f"{os.sep}{path}")


def _import_for(modules: list[_Module]) -> None:
    """Import what new statements will, so that it does not happen under a lock; more modules may come so."""
    waiting = list(modules)
    while ready := [module for module in waiting if module.live() is not None]:
        for module in ready:
            waiting.remove(module)
            live = module.live()
            assert live is not None
            module.additions.do_imports(live, module.members.imports)


#: The modules of archives that are in force, oldest patch first.
_applied: list[_Module] = []
#: What the archives were built from that have become patches here, by the names of these.
_releases: dict[str, tuple[Mapping[str, str], ...]] = {}


def forget_unloaded(loaded: set[str]) -> None:
    """Clean up for patches that are gone without their callbacks: replaced by one that does not know them."""
    for module in [module for module in _applied if module.patch not in loaded]:
        module._take_back()


class _Function:
    """One function that the patch changes, in both versions."""

    def __init__(self, entry: FunctionEntry, old: Definition, new: Definition, members: Members) -> None:
        self.entry = entry
        self.old = old
        self.new = new
        self.body = Body(new.code)
        onward = members.switches[entry.name].onward(flavour_of(old.code)) if entry.onward else None
        self.func = Func(entry.name, onward or self.body, old_sympos=entry.sympos, immediate=entry.immediate)


class _Module:
    """What the patch does to one module: its object, and the callbacks of that."""

    def __init__(
        self,
        patch: str,
        entry: ObjectEntry,
        archive: Archive,
        hooks: Hooks,
        arrivals: Arrivals,
        added: set[tuple[int, str]],
        values: list[Value],
        *,
        main: bool = False,
    ) -> None:
        self.name = entry.module
        self.hooks = hooks
        self.arrivals = arrivals
        self.text = archive.new[entry.path]
        self.old = _compiled(archive.old[entry.path], f"old/{entry.path}")
        self.new = _compiled(self.text, f"<livepatch {patch}>/{entry.path}")
        old, new = codes.definitions(self.old.code), codes.definitions(self.new.code)
        if kept := self._kept(entry, old, new):
            self.new.keep(kept)
            new = codes.definitions(self.new.code)
        self.members = Members(entry, self.old, self.new, new)
        self.bases = Bases(entry, self.new)
        self.enums = Enums(entry, self.new, replace=archive.manifest.replace)
        self.branches = Branches(entry, self.old, self.new)
        self.effects = Effects(entry, self.new)
        self.functions = []
        for f in entry.functions:
            before = self._find(old, f.name, f.sympos)
            after = before if f.retired else self._find(new, f.name, f.new_sympos)
            self.functions.append(_Function(f, before, after, self.members))
        self.additions = Additions(entry, self.new, added, arrivals, replace=archive.manifest.replace)
        self.constants = Constants(entry, self.old, self.new, values, replace=archive.manifest.replace)
        self.defaults = Defaults(entry, self.old, self.new, replace=archive.manifest.replace)
        callbacks = Callbacks(self._pre_patch, self._post_patch, self._pre_unpatch, self._post_unpatch)
        funcs = [*(function.func for function in self.functions), *self.members.funcs]
        self.object = Object(None if main else entry.module, funcs, callbacks=callbacks)
        self.patch = patch
        self.replace = archive.manifest.replace
        parts = (
            entry.added,
            entry.removed,
            entry.at_completion,
            entry.caches,
            entry.defaults,
            entry.members,
            entry.bases,
            entry.enums,
            entry.branches,
            entry.effects,
        )
        others = any(parts) or archive.hooks is not None
        self.object.after_body = bool(others) or any(self._needs_body(function) for function in self.functions)

    def _kept(
        self, entry: ObjectEntry, old: list[Definition], new: list[Definition]
    ) -> dict[tuple[str, int], set[str]]:
        """Variables of the function around it that a nested function has closed over, and does not need any more."""
        found = {}
        for f in entry.functions:
            if "<locals>" in f.name and not f.retired:
                before, after = self._find(old, f.name, f.sympos).code, self._find(new, f.name, f.new_sympos).code
                names = set(before.co_freevars) - set(after.co_freevars) - {"__class__"}
                if names:
                    found[after.co_name, after.co_firstlineno] = names
        return found

    def _needs_body(self, function: _Function) -> bool:
        """Whether a function has to wait for the body of its module: not only its code changes."""
        old, new = function.old.code, function.new.code
        if function.entry.retired:
            return True
        if codes.docstring(old) != codes.docstring(new) or codes.global_names(new)[0] - codes.global_names(old)[0]:
            return True
        if _made_in_an_expression(function.entry):
            return False
        return changes_signature(find_function(self.old, old), find_function(self.new, new))

    def _find(self, found: list[Definition], name: str, sympos: int) -> Definition:
        same_name = [definition for definition in found if definition.name == name]
        for definition in same_name:
            if definition.sympos == sympos or (sympos == 0 and len(same_name) == 1):
                return definition
        raise refusal(f"The archive names '{name}', which its '{self.name}' does not define.")

    def live(self) -> ModuleType | None:
        """The module, if it is imported."""
        return loaded_module(self.object.name)

    def verify(self, module: ModuleType, tables: Tables) -> None:
        """Raise LivepatchError (EINVAL) unless the live module is what the patch was built for.

        A function that is defined under a condition, and was not, is left out of the patch.
        """
        for function in list(self.functions):
            entry = function.entry
            tables.check_free(module, entry.name)
            if entry.conditional and not _is_defined(tables, module, entry):
                self.functions.remove(function)
                self.object.funcs.remove(function.func)
                continue
            self._compare(function, tables.find(module, entry.name, entry.sympos, self.name).code)
        self.arrivals.verify()
        self.additions.verify(module)
        self.defaults.verify(module)
        self.members.verify(module)
        self.bases.verify(module)
        self.enums.verify(module)

    def _compare(self, function: _Function, original: CodeType) -> None:
        """The proof: what is in force now is what the old source compiles to.

        A cumulative patch takes all others back, so that for it the original counts.
        """
        live = original if self.replace else front_code(original)
        if not codes.same(live, function.old.code):
            name = function.entry.name
            sentence = f"The live '{name}' in '{self.name}' is not the one that the patch was built for."
            raise refusal(sentence)
        if function.entry.retired:
            function.body.code = retired(live)

    def _pre_patch(self, obj: Object) -> object:
        module = obj.module
        assert module is not None
        try:
            for function in self.functions:  # again: the module may be new, or patched meanwhile by somebody else
                assert function.func.old_code is not None
                self._compare(function, function.func.old_code)
            self.arrivals.verify()
            self.additions.verify(module)
            self.defaults.verify(module)
            self.members.verify(module)
            self.enums.verify(module)
            self.branches.verify(module)
            self.arrivals.begin(self)
            self.enums.make(module)
            self.constants.begin()
            self.additions.make(module, self.constants)
            obj.values = list(self.constants.evaluate(module))
            self._check_names(module)
            self.branches.verify(module, constants=self.constants)
            live_values.settle_new(obj)
            self._set_attributes(module)
            self.defaults.make(module, self.hooks.attribute)
            self.bases.make(module, obj)
            self.members.make(module, self.constants.values)
            self.effects.rehearse(module, self.constants.values)
        except BaseException as error:
            self._undo()
            live_values.settle(obj, UNPATCHED)
            obj.values = []
            if isinstance(error, LivepatchError) or not isinstance(error, Exception):
                raise
            # What the new source does at module level is its own affair.
            sentence = f"A new statement for '{self.name}' failed: {error!r}."
            raise refusal(sentence) from error
        _applied.append(self)
        keep_source(self.text, self.new.file)
        if self.hooks.content is not None:
            keep_source(self.hooks.content, self.hooks.file)
        return self._ask(obj)

    def _ask(self, obj: Object) -> object:
        """What the author's own pre_patch says; if it refuses, there will be no post_unpatch."""
        refused: object = True
        try:
            callback = self.hooks.of(self.name).pre_patch
            refused = callback(obj) if callback is not None else None
            return refused
        finally:
            if refused is not None and refused != 0:
                self._take_back()

    def _check_names(self, module: ModuleType) -> None:
        """New code that names what the module does not have would fail when it runs: better now."""
        _, assigned = codes.global_names(self.new.code)
        known = assigned | vars(module).keys() | vars(builtins).keys() | self.constants.values.get(None, {}).keys()
        for function in self.functions:
            read = codes.global_names(function.new.code)[0] - codes.global_names(function.old.code)[0]
            for name in sorted(read - known):
                sentence = f"The new '{function.entry.name}' uses '{name}', which '{self.name}' does not have."
                raise refusal(sentence)

    def _set_attributes(self, module: ModuleType) -> None:
        """What the functions get besides new code: defaults, annotations, docstring."""
        carriers: dict[int, list[FunctionType]] = {}
        for function in self.functions:
            attributes = function.body.attributes
            attributes.clear()
            if function.entry.retired:
                continue
            if codes.docstring(function.old.code) != codes.docstring(function.new.code):
                attributes["__doc__"] = codes.docstring(function.new.code)
            if _made_in_an_expression(function.entry):
                continue  # it was born with defaults of its own; the build made sure that they stay
            old, new = find_function(self.old, function.old.code), find_function(self.new, function.new.code)
            if changes_signature(old, new) or function.entry.anew:
                carriers = carriers or functions_of(c for f in self.functions for c in _codes(f))
                live = next((carrier for code in _codes(function) for carrier in carriers[id(code)]), None)
                if live is not None and self.replace:
                    live = redirect.as_original(live, function.func)
                if live is not None:
                    anew = function.entry.anew
                    attributes.update(new_attributes(old, self.new, new, live, module, self.constants.values, anew))

    def _post_patch(self, obj: Object) -> None:
        assert obj.module is not None
        if self.replace:
            self._take_over()
        self.additions.complete()
        self.constants.complete(obj)
        self.arrivals.complete()
        self.members.complete()
        self.bases.complete()
        self.effects.complete(obj.module)
        self._call(self.hooks.of(self.name).post_patch, obj)

    def _pre_unpatch(self, obj: Object) -> None:
        self._call(self.hooks.of(self.name).pre_unpatch, obj)
        self.bases.return_()
        self.members.return_()

    def _post_unpatch(self, obj: Object) -> None:
        try:
            if obj.module is not None:
                self.constants.undo_caches(obj.module)
            self._call(self.hooks.of(self.name).post_unpatch, obj)
        finally:
            self._take_back()

    def _call(self, callback: Callable[[Object], object] | None, obj: Object) -> None:
        if callback is not None:
            callback(obj)

    def _take_over(self) -> None:
        """At the end of an atomic replace: the patches before this one run no callbacks, so it cleans up for them."""
        changing = lists.changing()
        if changing is None or changing[0].name != self.patch:
            return
        replaced = {patch.name for patch in lists.listed[: lists.listed.index(changing[0])]}
        mine = {module.object.name: module for module in _applied if module.patch == self.patch}
        for other in [module for module in _applied if module.patch in replaced]:
            successor = mine.get(other.object.name)
            if successor is not None:
                successor.additions.take_over(other.additions)
                successor.members.take_over(other.members)
                successor.bases.take_over(other.bases)
                successor.enums.take_over(other.enums)
            other._take_back()

    def _take_back(self) -> None:
        if self in _applied:
            _applied.remove(self)
        self._undo()
        linecache.cache.pop(self.new.file, None)
        linecache.cache.pop(self.hooks.file, None)

    def _undo(self) -> None:
        """Take back what has been made for the module, as far as it came."""
        self.effects.take_back()
        self.members.take_back()
        self.bases.take_back()
        self.defaults.take_back()
        self.additions.take_back()
        self.constants.forget()
        self.enums.take_back()
        self.arrivals.end(self)


def _made_in_an_expression(entry: FunctionEntry) -> bool:
    """A closure or a lambda: there is one for each time that what is around it is run."""
    return "<locals>" in entry.name or entry.name.endswith("<lambda>")


def _is_defined(tables: Tables, module: ModuleType, entry: FunctionEntry) -> bool:
    return any(entry.sympos in (0, symbol.sympos) for symbol in tables.all(module, entry.name))


def _codes(function: _Function) -> list[CodeType]:
    return resolve.current_codes(function.func)


def _compiled(content: bytes, file: str) -> NewSource:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return NewSource(content, file)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 0
        reason = error.args[0] if error.args else type(error).__name__
        sentence = f"This Python cannot compile {file}, line {line}: {reason}."
        raise refusal(sentence) from None
