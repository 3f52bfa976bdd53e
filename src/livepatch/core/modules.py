"""Modules that come and go under patches: the kernel's klp_module_coming and klp_module_going.

Coming. A module's functions do not exist before its body runs, and the body may call them. But their code objects
exist: they are constants in the compiled module. So the patches are applied before the body runs: symbols are resolved
among these constants, callbacks run, and in the code that is then executed each constant of a patched function is
replaced by a stub (`Redirection.make_stub`). When the body has run, the functions are found and get what any other
patched function has. Where a loader has its own way to execute a module, or the body decides which of two functions
there will be, callbacks run before the body all the same, and the functions are redirected when it has run. An
object whose callbacks need what the body defines waits for that.

A patch that does not fit refuses the module: the import fails, nothing of the module stays, and what older patches had
done to it is taken back. One that is lenient gives up instead: it is applied to no module any more, and whoever made
it so disables it.

Going. Python never unloads a module: `unload_module`, deletion from `sys.modules` and `importlib.reload` count as
that. The functions that somebody still holds get their original code back, at once and without a transition: in the
kernel nobody can be inside of a module that goes. A deletion calls nobody; it is noticed by the next operation, round
or import of that name.

All of this runs in the thread that imports, holding the module's import lock; `lock.py` tells the order of locks.
"""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

from . import caches, callbacks, cpython, lists, log, objects, originals, redirect
from .carriers import functions_of
from .codes import definitions
from .lock import TakenOver
from .model import Body, LivepatchError, Object, Patch
from .redirect import Redirection, redirections
from .resolve import init_object
from .symbols import Symbol, Tables, choose, half_imported, is_lazy, loaded_module
from .trampoline import replace_constants

#: Modules whose bodies run under a loader of ours, by name; `_arrive` is called for each.
_loading: dict[str, list[Redirection]] = {}
#: By thread and id, modules that patches are being applied to before their bodies run: their callbacks may run.
_preparing: set[tuple[int, int]] = set()
#: By thread, modules that it is about to find by a finder which enables patches first, and asks ours for them then.
sought: set[tuple[int, str]] = set()
#: What a refused reload leaves in sys.modules for the import system to find; see `_refuse_reload`.
_REFUSED = "livepatch: refused "
_IMPORTED_NOW = "Module '{}' is being imported just now; try again."


class RefusedModule(ImportError):
    """A patch refused a module; `errno` says why."""

    def __init__(self, sentence: str, name: str, number: int) -> None:
        super().__init__(sentence, name=name)
        self.errno = number


class BeingImported(LivepatchError):
    """EBUSY: another thread imports a module, and it was there neither to be patched nor to be waited for."""

    def __init__(self, name: str) -> None:
        super().__init__(errno.EBUSY, _IMPORTED_NOW.format(name))
        self.module = name


# -- coming --------------------------------------------------------------------------------------------------


class _Constants:
    """The symbols of a module that is coming: what its compiled code defines."""

    def __init__(self, code: CodeType) -> None:
        self._symbols = [Symbol(d.name, d.sympos, d.code) for d in definitions(code)]

    def all(self, module: ModuleType, name: str) -> list[Symbol]:
        return [symbol for symbol in self._symbols if symbol.name == name]

    def find(self, module: ModuleType, name: str, sympos: int, shown: str) -> Symbol:
        return choose(self.all(module, name), name, sympos, shown)

    def needs_body(self, obj: Object) -> bool:
        """A function of the object gets what can be made only from the live one: defaults, or other cells."""
        bodies = [(func, func.new_func) for func in obj.funcs if isinstance(func.new_func, Body)]
        return any(
            new.attributes
            or any(s.code.co_freevars != new.code.co_freevars for s in self._symbols if s.name == func.old_name)
            for func, new in bodies
        )

    def certain(self, obj: Object) -> bool:
        """It is known which functions there will be: of no name there are several to choose from."""
        names = [symbol.name for symbol in self._symbols]
        return all(func.old_sympos or names.count(func.old_name) <= 1 for func in [*obj.funcs, *obj.nops])

    def expect(self, obj: Object) -> None:
        """Raise LivepatchError if the body cannot define a function; of several with one name it may define one."""
        assert obj.module is not None
        for func in [*obj.funcs, *obj.nops]:
            if func.old_sympos or not self.all(obj.module, func.old_name):
                self.find(obj.module, func.old_name, func.old_sympos, obj.kernel_name)


def _hoping(name: str) -> list[tuple[Patch, Object]]:
    """The objects for a module, of patches that are in force, or come or go, and have not given up."""
    return [
        (patch, obj)
        for patch, obj in lists.objects_named(name)
        if obj.module is not None or (not patch.given_up and (patch.enabled or lists.moving(patch) is not None))
    ]


def _come(module: ModuleType, name: str, code: CodeType | None, *, ours: bool) -> CodeType | None:
    """Apply the patches before the body runs. Returns the code to execute if it is `ours` to do that."""
    with lists.mutex.held():
        _purge_refused()
        _loading[name] = []
        waiting = [(patch, obj) for patch, obj in _hoping(name) if obj.module is None]
        if code is None:
            return None
        symbols = _Constants(code)
        certain = ours
        for patch, obj in waiting:
            if obj.module is not None:
                continue  # by a callback of one before, which has imported what has this name now
            if obj.after_body or symbols.needs_body(obj):
                break  # newer patches must be applied after this one
            certain = certain and symbols.certain(obj)
            obj.module = obj.entry = module
            _apply(patch, obj, symbols, promise=not certain)
        born = [func for _, obj in waiting if obj.module is module for func in obj.all_funcs() if func.patched]
        touched = {id(func.old_code): redirections[id(func.old_code)] for func in born}
        _loading[name] = list(touched.values())
        stubs = {key: redirection.make_stub() for key, redirection in touched.items()}
        return replace_constants(code, stubs) if ours else None


def _arrive(module: ModuleType, name: str) -> None:
    """The body has run: find what it made, and apply what had to wait for it."""
    with lists.mutex.held():
        entry = sys.modules.get(name, module)
        body = entry if isinstance(entry, ModuleType) else module
        for _, obj in lists.objects_named(name):
            if obj.module is module:
                obj.entry = entry
        try:
            _adopt(_loading.pop(name, []))
            for patch, obj in _hoping(name):
                if obj.module is None:
                    obj.module, obj.entry = body, entry
                    _apply(patch, obj, Tables([body]))
                elif any(func.old_code is None for func in [*obj.funcs, *obj.nops]):
                    _keep_promise(patch, obj)
        finally:
            for _, obj in lists.objects_named(name):
                if obj.module_state == "COMING":
                    obj.module_state = "LIVE"


def _adopt(born: list[Redirection]) -> None:
    """Functions born with a stub get what their redirection has for them, or their original back."""
    if not born:
        return
    current = [redirections.get(id(redirection.original), redirection) for redirection in born]
    for redirection, stubbed in zip(current, born, strict=True):
        redirection.stub = stubbed.stub
    found = functions_of(code for redirection in current for code in redirection.codes())
    cached = caches.cached()
    for redirection in current:
        redirection.adopt(found)
        redirection.arrive(cached)
    for redirection in born:
        redirection.stub = None
    for now in [changing] if (changing := lists.changing()) is not None else []:
        now[1].renew(objects.suspendable(now[0]))


def _apply(patch: Patch, obj: Object, symbols: _Constants | Tables, *, promise: bool = False) -> None:
    """Apply one patch to a module that is coming. Raises ImportError if it refuses the module.

    With `promise` everything is done but redirection: what will be redirected shows when the body has run.
    """
    name, module = str(obj.name), obj.module
    obj.module_state = "COMING"
    transition = lists.moving(patch)
    try:
        try:
            if promise and isinstance(symbols, _Constants):
                symbols.expect(obj)
            else:
                init_object(obj, symbols, _replaced(patch))
        except LivepatchError as error:
            log.warning(f"failed to initialize patch '{patch.name}' for module '{name}' ({-(error.errno or 0)})")
            raise
        log.notice(f"applying patch '{patch.name}' to loading module '{name}'")
        callbacks.pre_patch(obj)
        if obj.module is not module or obj.patched:
            return  # the callback has imported another one of this name, or reloaded this one: all is done
        _redirect(patch, obj, symbols, promise=promise)
    except TakenOver:
        raise
    except BaseException as error:
        _forget(obj, module)
        _refuse(patch, name, error)
        return
    if transition is None:
        callbacks.post_patch(obj)


def _keep_promise(patch: Patch, obj: Object) -> None:
    """Its callbacks ran before the body; now there are functions."""
    assert obj.module is not None
    try:
        init_object(obj, Tables([obj.module]), _replaced(patch))
        _redirect(patch, obj, Tables([obj.module]), promise=False)
    except BaseException as error:
        if patch.lenient is not None and isinstance(error, Exception):
            _go(patch, obj)
        _refuse(patch, str(obj.name), error)


def _redirect(patch: Patch, obj: Object, symbols: _Constants | Tables, *, promise: bool) -> None:
    transition = lists.moving(patch)
    for func in obj.all_funcs():
        func.transition = transition is not None
    try:
        if promise:
            redirect.check_allowed(obj.all_funcs())
            obj.patched = True
            return
        found = objects.find(obj.all_funcs()) if isinstance(symbols, Tables) else objects.Found({}, set())
        objects.patch_object(obj, found, transition)
    except BaseException as error:
        log.warning(f"failed to apply patch '{patch.name}' to module '{obj.name}' ({-_number(error)})")
        _unpatch(obj)
        raise
    if transition is not None:
        transition.renew(objects.suspendable(patch))


def _refuse(patch: Patch, name: str, error: BaseException) -> None:
    if patch.lenient is not None and isinstance(error, Exception):
        log.warning(f"patch '{patch.name}' failed for module '{name}', which is loaded without it: {error}")
        patch.given_up = True
        patch.lenient()
        return
    log.warning(f"patch '{patch.name}' failed for module '{name}', refusing to load module '{name}'")
    _revert(name)
    if not isinstance(error, Exception):
        raise error
    raise RefusedModule(f"Patch '{patch.name}' refused '{name}': {error}", name, _number(error)) from error


def _replaced(patch: Patch) -> list[Patch]:
    """The patches that this one is just replacing."""
    if not patch.replace or lists.moving(patch) is None:
        return []
    return lists.listed[: lists.listed.index(patch)]


def _number(error: BaseException) -> int:
    return error.errno or errno.EINVAL if isinstance(error, LivepatchError) else errno.EINVAL


# -- going ---------------------------------------------------------------------------------------------------


def _revert(name: str) -> None:
    """Take back what all patches have done to a module, oldest patch first."""
    for patch, obj in lists.objects_named(name):
        if obj.module is not None:
            _go(patch, obj)
    if name in _loading:  # the functions that its body has made so far
        _adopt(_loading.pop(name))


def _go(patch: Patch, obj: Object) -> None:
    # A module that never was there to the end keeps its state: the kernel calls it GOING only after its init has run.
    transition, module = lists.moving(patch), obj.module
    callbacks.pre_unpatch(obj)
    if obj.module is not module:
        return
    log.notice(f"reverting patch '{patch.name}' on unloading module '{obj.name}'")
    _unpatch(obj)
    _forget(obj, module)
    if transition is not None:
        transition.renew(objects.suspendable(patch))


def _forget(obj: Object, module: ModuleType | None) -> None:
    """Unless a callback has given the object another module, or this one anew."""
    if obj.module is module and not obj.patched:
        obj.forget_module()


def _unpatch(obj: Object) -> None:
    touched = [redirections[id(func.old_code)] for func in obj.all_funcs() if func.patched]
    objects.unpatch_object(obj)
    objects.settle(touched)
    callbacks.post_unpatch(obj)


def _going(name: str) -> None:
    """A module goes: tell the callbacks so, and take everything back."""
    for _, obj in lists.objects_named(name):
        if obj.module is not None:
            obj.module_state = "GOING"
    _revert(name)


def take_over(interrupted: list[Object]) -> None:
    """In a forked child: nobody goes on with what was in the middle of a callback of these objects."""
    names = {obj.name for obj in interrupted if obj.module_state in ("COMING", "GOING")}
    for obj in [obj for name in names for _, obj in lists.objects_named(str(name)) if obj.module is not None]:
        if obj.module_state == "COMING" and obj.patched:
            obj.module_state = "LIVE"
        elif obj.module_state in ("COMING", "GOING"):
            module = obj.module
            _unpatch(obj)
            _forget(obj, module)
            obj.entry = sys.modules.get(str(obj.name))  # or it would be tried again, and again in each child of ours
    if names and (now := lists.changing()) is not None:
        now[1].renew(objects.suspendable(now[0]))


def sweep() -> None:
    """Notice what was deleted from `sys.modules`, or came there past us. To be called under the mutex."""
    if sys.is_finalizing():
        return
    for patch in list(lists.listed):
        for obj in patch.all_objects():
            gone = obj.name is not None and obj.module is not None and obj.module_state == "LIVE"
            if gone and sys.modules.get(str(obj.name)) is not obj.entry:
                _going(str(obj.name))
            elif obj.name is not None and obj.module is None and obj.name not in _loading:
                _apply_unseen(obj, str(obj.name))
    _purge_refused()


def _apply_unseen(obj: Object, name: str) -> None:
    """A module is there although nobody saw it come: some other finder was before ours, or it was put there."""
    module = loaded_module(name)
    if module is None or obj.entry is module or cpython.importing(name):
        return
    try:
        _arrive(module, name)
    except ImportError:  # it cannot be refused any more, and it would be again
        obj.entry = module


def unload_module(name: str) -> None:
    """Remove a module: patches are reverted on it, with their callbacks, and it leaves `sys.modules`.

    Whoever still holds its functions keeps them, with their original code. Raises `LivepatchError` with ENOENT (there
    is no such module), EINVAL (the main program, or livepatch itself), EAGAIN (submodules of it are loaded: unload
    these first) or EBUSY (it is being imported just now).
    """
    if name == "__main__" or name.partition(".")[0] == __package__.partition(".")[0]:
        raise LivepatchError(errno.EINVAL, f"'{name}' cannot be unloaded; the process would not survive it.")
    with cpython.import_lock(name), lists.exclusively():
        sweep()
        entry = sys.modules.get(name)
        if entry is None:
            raise LivepatchError(errno.ENOENT, f"There is no module '{name}' to unload.")
        if name in _loading or half_imported(entry):
            raise LivepatchError(errno.EBUSY, _IMPORTED_NOW.format(name))
        inner = next((other for other in list(sys.modules) if other.startswith(name + ".")), None)
        if inner is not None:
            raise LivepatchError(errno.EAGAIN, f"Module '{name}' is in use by '{inner}'; unload that first.")
        _going(name)
        del sys.modules[name]
        parent, _, last = name.rpartition(".")
        around = sys.modules.get(parent)
        if around is not None and vars(around).get(last) is entry:
            delattr(around, last)


# -- the import system ---------------------------------------------------------------------------------------


class _Loader:
    """Stands before a module's loader for as long as the module is being loaded."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        create = getattr(self._loader, "create_module", None)
        made: ModuleType | None = create(spec) if create is not None else None
        return made

    def exec_module(self, module: ModuleType) -> None:
        # The module is to look as if we had never been there, to its own body already.
        module.__loader__ = self._loader
        spec = module.__spec__
        name = spec.name if spec is not None else module.__name__
        if spec is not None:
            spec.loader = self._loader
        if sys.modules.get(name, module) is not module:  # a private copy; the name stands for another one
            self._loader.exec_module(module)
            return
        if (originals.get_ident(), id(module)) in _preparing:
            raise ImportError(f"Module '{name}' cannot be loaded anew by a callback that it waits for.", name=name)
        reload = name in sys.modules and not half_imported(module)
        try:
            self._exec(module, name, reload)
        except RefusedModule:
            if reload and spec is not None:
                _refuse_reload(spec, name)
            raise
        finally:
            _loading.pop(name, None)

    def _exec(self, module: ModuleType, name: str, reload: bool) -> None:
        ours = cpython.runs_its_code(self._loader)
        code = self._loader.get_code(name) if ours else _foreseen(self._loader, module, name)
        preparing = originals.get_ident(), id(module)
        _preparing.add(preparing)
        try:
            with lists.mutex.held():
                _going(name)  # whatever the name stood for until now
            edited = _come(module, name, code, ours=ours)
        finally:
            _preparing.discard(preparing)
        try:
            if edited is None:
                self._loader.exec_module(module)
            else:
                cpython.exec_removed(edited, module)
        except BaseException:
            with lists.mutex.held():
                _going(name)
            if reload:
                _arrive(module, name)  # it stays where it was, with what its body has made so far
            raise
        _arrive(module, name)


def _foreseen(loader: Any, module: ModuleType, name: str) -> CodeType | None:
    """What a loader with ways of its own is likely to execute, or something like it: who has these functions."""
    try:
        if hasattr(loader, "get_code"):
            code: CodeType | None = loader.get_code(name)
            return code
        spec = module.__spec__
        if spec is None or not spec.has_location or not str(spec.origin).endswith(".py"):
            return None
        with io.open_code(str(spec.origin)) as file:
            return compile(file.read(), str(spec.origin), "exec", dont_inherit=True)
    except Exception:  # any loader may be in there; it works without
        return None


def _refuse_reload(spec: ModuleSpec, name: str) -> None:
    """Take a module out of `sys.modules` in the middle of its reload.

    The import system will look for it there once more, under the name that its spec has, and must find something.
    """
    if name in sys.modules:
        spec.name = _REFUSED + name
        sys.modules[spec.name] = sys.modules.pop(name)


def _purge_refused() -> None:
    for name in [name for name in list(sys.modules) if name.startswith(_REFUSED)]:
        del sys.modules[name]


class _Watched(ModuleSpec):
    """The spec of a module whose import had begun when a patch began to wait for it: its end is seen here."""

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__["_initializing"])

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        if value:
            return
        self.__class__ = ModuleSpec  # type: ignore[assignment]
        module = sys.modules.get(self.name)
        if isinstance(module, ModuleType) and module.__spec__ is self:
            try:
                _arrive(module, self.name)
            except ImportError:
                sys.modules.pop(self.name, None)
                raise


def _comes_to_us(name: str) -> bool:
    """Our loader has this module, or whoever imports it is going to ask our finder, and may be waiting for us."""
    return name in _loading or (cpython.importer(name), name) in sought


def await_absent(patch: Patch) -> None:
    """Wait for those modules of a patch whose import has begun without our loader, or which are yet to be run.

    A half-imported module counts as absent. Raises `BeingImported` if such a module is being looked for, so that it
    cannot be waited for yet, or is complete by now, so that its symbols can be resolved; `LivepatchError` with EBUSY
    (this very thread is looking for it) or EINVAL (something that is no module has its place).
    """
    for obj in patch.objects:
        name = obj.name
        if name is None or obj.module is not None:
            continue
        if _sought_elsewhere(name):
            if cpython.importer(name) == originals.get_ident():
                raise LivepatchError(errno.EBUSY, _IMPORTED_NOW.format(name))
            raise BeingImported(name)
        if _comes_to_us(name):
            continue
        module = sys.modules.get(name)
        spec = ModuleType.__getattribute__(module, "__spec__") if isinstance(module, ModuleType) else None
        if is_lazy(module) and spec is not None:
            spec.loader = _Loader(spec.loader)
        elif type(spec) is ModuleSpec and half_imported(module):
            spec.__class__ = _Watched
        elif module is not None and not isinstance(module, ModuleType):
            kind = type(module).__qualname__
            raise LivepatchError(errno.EINVAL, f"What is imported as '{name}' is no module but a {kind}.")
        elif module is not None and type(spec) is not _Watched:
            raise BeingImported(name)


def _sought_elsewhere(name: str) -> bool:
    """Somebody has the module's import lock without our finder: he looks for it, or is about to let go of it."""
    return cpython.importing(name) and not _comes_to_us(name) and not half_imported(sys.modules.get(name))


def wait_until_found(name: str, until: float) -> bool:
    """Wait until a module is no longer looked for elsewhere. False if `until` comes first, on the monotonic clock.

    Not to be called under the mutex, which whoever has the import lock may want before he lets go of it.
    """
    while originals.monotonic() < until:
        if not _sought_elsewhere(name):
            return True
        originals.sleep(0.001)
    return False


class Finder:
    """In front of all others, it lets them find a module that patches wait for, and wraps its loader."""

    def __init__(self) -> None:
        # By thread and name: what was found for a finder that asks all of them again, as import hooks of tracers do.
        # They put their loader around ours then, and it must not be wrapped once more.
        self._asked: dict[tuple[int, str], ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not lists.objects_named(fullname):
            return None
        asked = originals.get_ident(), fullname
        again = asked in self._asked
        self._asked.setdefault(asked, None)
        try:
            spec = self._find(fullname, path, target)
            if spec is not None and spec is not self._asked[asked] and hasattr(spec.loader, "exec_module"):
                spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
            self._asked[asked] = spec
            return spec
        finally:
            if not again:
                del self._asked[asked]

    def _find(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    return spec
        return None


finder = Finder()


def await_modules() -> None:
    """Modules matter as long as a patch is listed."""
    if lists.listed and sys.meta_path[:1] != [finder]:
        cpython.remove_finder(finder)
        sys.meta_path.insert(0, finder)
    elif not lists.listed:
        cpython.remove_finder(finder)
