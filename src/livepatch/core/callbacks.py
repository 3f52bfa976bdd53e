"""The four callbacks of an object, as the kernel calls them.

Only pre_patch can refuse. post_unpatch pairs with pre_patch, by a flag; pre_unpatch pairs with post_patch, by who
calls it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from . import lists, log
from .lock import TakenOver
from .model import LivepatchError, Object, reason


def pre_patch(obj: Object) -> None:
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


def post_patch(obj: Object) -> None:
    _run(obj.callbacks.post_patch, obj)


def pre_unpatch(obj: Object) -> None:
    _run(obj.callbacks.pre_unpatch, obj)


def post_unpatch(obj: Object) -> None:
    if obj.post_unpatch_due:
        obj.post_unpatch_due = False
        _run(obj.callbacks.post_unpatch, obj)
