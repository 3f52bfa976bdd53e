"""The four callbacks of an object, as the kernel calls them; and those that are called with each instance of a class.

Only pre_patch can refuse. post_unpatch pairs with pre_patch, and pre_unpatch with post_patch, by a flag each. Those for
instances run inside of what the object's own callbacks begin and end: after its pre_patch and post_patch, before its
pre_unpatch and post_unpatch.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from . import lists, log
from .instances import class_of, each_instance, given
from .lock import TakenOver
from .model import LivepatchError, Object, reason


def asks(obj: Object) -> bool:
    """Whether `pre_patch` runs anybody's code."""
    return obj.callbacks.pre_patch is not None or bool(obj.instances)


def pre_patch(obj: Object) -> None:
    for path in obj.instances:
        class_of(obj, path)
    callback = obj.callbacks.pre_patch
    refused: LivepatchError | None = None
    cause: BaseException | None = None
    if callback is not None:
        try:
            result = _call(callback, obj)
        except Exception as error:
            cause = error
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
            refused = LivepatchError(number, str(error) or repr(error))
        else:
            if result is not None and result != 0:
                number = -result if isinstance(result, int) and result < 0 else errno.EINVAL
                refused = LivepatchError(
                    number, f"The pre-patch callback for '{obj.shown_name}' refused: {reason(number)}."
                )
    if refused is not None:
        log.warning(f"pre-patch callback failed for object '{obj.kernel_name}'")
        raise refused from cause
    obj.post_unpatch_due = True
    if obj.module is None:  # it has made its own module go
        post_unpatch(obj)
        return
    try:
        for path, wanted in obj.instances.items():
            if wanted.pre_patch is not None:
                _call(partial(_ask, path, wanted.pre_patch), obj)
    except TakenOver:
        raise
    except BaseException:
        log.warning(f"pre-patch callback failed for object '{obj.kernel_name}'")
        post_unpatch(obj)
        raise


def _ask(path: str, function: Callable[[Any], object], obj: Object) -> None:
    """Call it with each instance; the first that it fails for refuses the patch."""
    for instance in each_instance(class_of(obj, path)):
        try:
            function(instance)
        except Exception as error:
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
            sentence = f"The pre-patch callback for instances of '{path}' in '{obj.shown_name}' failed: {error!r}."
            raise LivepatchError(number, sentence) from error


class _Walk:
    """Calls a function with each instance of a class; what it raises for one does not keep it from the others.

    Called again, it goes on where it was cut off: by an exception from a signal handler, or by a fork, in the child.
    """

    def __init__(self, path: str, function: Callable[[Any], object]) -> None:
        self._path = path
        self._function = function
        self._left: list[Any] | None = None
        self._total = self._failed = 0
        self._first = ""

    def __call__(self, obj: Object) -> None:
        if self._left is None:
            found = list(each_instance(class_of(obj, self._path)))
            self._left, self._total = found, len(found)
        while self._left:
            try:
                for instance in given(self._left):
                    self._function(instance)
            except TakenOver:
                raise
            except BaseException as error:
                self._failed += 1
                error.with_traceback(None)  # it has the instance
                self._first = self._first or repr(error)
        if self._failed:
            shown = f"{self._failed} of {self._total} instances of '{self._path}' in '{obj.shown_name}'"
            log.warning(f"a callback failed for {shown} and was ignored: {self._first}")
            self._failed = 0


#: The objects whose callbacks are running, innermost last.
running: list[Object] = []


def _call(callback: Callable[[Object], object], obj: Object) -> object:
    running.append(obj)
    try:
        with lists.mutex.resting():  # it may import, and fork
            result = callback(obj)
    except TakenOver:
        raise
    except BaseException:
        running.pop()
        raise
    running.pop()
    return result


def _run(callback: Any, obj: Object) -> None:
    if callback is not None:
        try:
            _call(callback, obj)
        except TakenOver:
            raise
        except BaseException as error:  # not even an exit: what comes next must be done
            log.warning(f"a callback for object '{obj.shown_name}' failed and was ignored: {error!r}")


#: What is left to be called of an object, one after the other.
Steps = list[Callable[[], None]]


def post_patch_steps(obj: Object) -> Steps:
    """Nothing is left if a callback of another object has made its module go, or come with a post_patch of its own."""
    if obj.module is None or obj.pre_unpatch_due:
        return []
    return [partial(_post_patch, callback, obj) for callback in (obj.callbacks.post_patch, *_twice(obj, "post_patch"))]


def post_unpatch_steps(obj: Object) -> Steps:
    if not obj.post_unpatch_due:
        return []
    return [*(partial(_run, walk, obj) for walk in _twice(obj, "post_unpatch")), partial(_post_unpatch, obj)]


def _twice(obj: Object, moment: str) -> list[_Walk]:
    """The second time finds something to do only where the first was cut off."""
    wanted = [(path, getattr(callbacks, moment)) for path, callbacks in obj.instances.items()]
    walks = [_Walk(path, function) for path, function in wanted if function is not None]
    return [walk for walk in walks for _ in range(2)]


def post_patch(obj: Object) -> None:
    for step in post_patch_steps(obj):
        step()


def _post_patch(callback: Any, obj: Object) -> None:
    obj.pre_unpatch_due = True
    _run(callback, obj)


def pre_unpatch(obj: Object) -> None:
    if not obj.pre_unpatch_due:
        return
    obj.pre_unpatch_due = False
    for walk in _twice(obj, "pre_unpatch"):
        _run(walk, obj)
    _run(obj.callbacks.pre_unpatch, obj)


def post_unpatch(obj: Object) -> None:
    for step in post_unpatch_steps(obj):
        step()


def _post_unpatch(obj: Object) -> None:
    if obj.post_unpatch_due:
        obj.post_unpatch_due = False
        _run(obj.callbacks.post_unpatch, obj)


class Remaining:
    """What is left to be called of some objects, whose steps show when they have their turn: others may disturb them.

    An exception may cut it off anywhere. It can be called again, since each step is taken off before it is called.
    """

    def __init__(self, steps: Callable[[Object], Steps], objects: list[Object]) -> None:
        self._steps_of = steps
        self._objects = objects
        self._steps: Steps = []

    def call(self) -> None:
        while self._steps or self._objects:
            if self._steps:
                self._steps.pop(0)()
            else:
                first, *others = self._objects
                self._steps, self._objects = self._steps_of(first), others  # at once
