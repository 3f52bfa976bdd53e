"""Modules that are imported after a patch for them was enabled.

A finder in front of all others waits for the names that enabled patches are waiting for. It lets the others find the
module and wraps the loader, so that the patches are applied when the module's body has run and before `import`
returns. A patch that does not fit refuses the module: the import fails and nothing of the module stays.

Order of locks: the import lock of the module, then the registry's mutex. So callbacks, which run under the mutex,
must not import modules that a patch waits for.

The body itself runs unpatched, and a patched module cannot be reloaded or imported a second time while the patch
is there: its new functions would be unpatched, and that must not pass in silence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Loader:
    """Stands before a module's loader for as long as the module is being loaded."""

    def __init__(self, loader: Any, loading: set[str], coming: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._loading = loading
        self._coming = coming

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        create = getattr(self._loader, "create_module", None)
        made: ModuleType | None = create(spec) if create is not None else None
        return made

    def exec_module(self, module: ModuleType) -> None:
        # The module is to look as if we had never been there, to its own body already.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        name = module.__name__
        self._loading.add(name)
        try:
            self._loader.exec_module(module)
        except BaseException:
            self._loading.discard(name)
            raise
        self._coming(sys.modules.get(name, module))


class Finder:
    """Waits for modules; `awaited(name)` says whether a patch does, `refused(name)` why it must not come."""

    def __init__(
        self,
        awaited: Callable[[str], bool],
        refused: Callable[[str], str | None],
        coming: Callable[[ModuleType], None],
    ) -> None:
        self._awaited = awaited
        self._refused = refused
        self._coming = coming
        #: Modules whose bodies run, and for which `coming` will be called, which takes them off.
        self.loading: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        reason = self._refused(fullname)
        if reason is not None:
            raise ImportError(reason, name=fullname)
        if not self._awaited(fullname):
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self.loading, self._coming)  # type: ignore[assignment]
                return spec
        return None

    def start(self) -> None:
        """Be in front from now on."""
        if sys.meta_path[:1] != [self]:
            self.stop()
            sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """Nobody waits for anything any more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
