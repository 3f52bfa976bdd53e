"""Where a task is between two pieces of work: see `Patch.consistency`.

A *work* is a function that runs exactly one request or job of a server, a *worker* one that waits for the next. The
servers' own are listed here, by module; requests are also known by how an application is called, which is fixed
by WSGI and ASGI. Whoever has nothing but library code on its stack, and no work, waits for something as well.
Application code may be in the middle of anything.

Works nest: a thread per connection is itself a work, within which a worker waits for the next request. So the
innermost one decides, unless application code stands between it and another: a handler that runs a server of its own.

Tasks are looked at in rounds. A busy one may be in the middle of a work at every look; so while a transition with
boundaries runs, the works that are plain functions are hooked, and the task looks at itself where one returns.

A request may have a thread of a pool do a part of it (`asyncio.to_thread`, Django's plain views under ASGI). It is one
request all the same: a work item of `concurrent.futures` begins in the state of the task that has submitted it.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import CodeType, FrameType, FunctionType
from typing import Any

from .. import redirect, trampoline
from ..codes import kind
from ..transition import Transition

#: Functions, by module.
_Names = dict[str, tuple[str, ...]]

#: What runs one piece of work.
_WORKS: _Names = {
    "asgiref.current_thread_executor": ("_WorkItem.run",),
    "celery.app.trace": ("fast_trace_task", "trace_task_ret", "trace_task"),
    "celery.concurrency.base": ("apply_target",),
    "cheroot.server": ("HTTPConnection.communicate", "HTTPRequest.respond"),
    "concurrent.futures.thread": ("_WorkItem.run",),
    "eventlet.wsgi": ("HttpProtocol.handle_one_response",),
    "gevent.pywsgi": ("WSGIHandler.handle_one_response",),
    "gunicorn.asgi.protocol": (
        "ASGIProtocol._handle_http_request",
        "ASGIProtocol._handle_http2_request",
        "ASGIProtocol._handle_websocket",
    ),
    "gunicorn.workers.base_async": ("AsyncWorker.handle_request", "AsyncWorker.handle_http2_request"),
    "gunicorn.workers.gthread": ("ThreadWorker.handle_request", "ThreadWorker.handle_http2_request"),
    "gunicorn.workers.sync": ("SyncWorker.handle_request",),
    "http.server": ("SimpleHTTPRequestHandler.do_GET", "SimpleHTTPRequestHandler.do_HEAD"),
    "hypercorn.app_wrappers": ("WSGIWrapper.run_app",),
    "hypercorn.asyncio.task_group": ("_handle",),
    "hypercorn.trio.task_group": ("_handle",),
    "socketserver": (
        "BaseServer.process_request",
        "ForkingMixIn.process_request",
        "ThreadingMixIn.process_request_thread",
    ),
    "trio._core._thread_cache": ("WorkerThread._handle_job",),
    "uvicorn.protocols.http.h11_impl": ("RequestResponseCycle.run_asgi",),
    "uvicorn.protocols.http.httptools_impl": ("RequestResponseCycle.run_asgi",),
    "uvicorn.protocols.websockets.websockets_impl": ("WebSocketProtocol.run_asgi",),
    "uvicorn.protocols.websockets.websockets_sansio_impl": ("WebSocketsSansIOProtocol.run_asgi",),
    "uvicorn.protocols.websockets.wsproto_impl": ("WSProtocol.run_asgi",),
    "waitress.task": ("Task.service",),
    "werkzeug.serving": ("WSGIRequestHandler.run_wsgi",),
    "wsgiref.handlers": ("BaseHandler.run",),
    "xmlrpc.server": ("SimpleXMLRPCRequestHandler.do_POST",),
}

#: What waits for the next piece of work.
_WORKERS: _Names = {
    "asyncio.base_events": ("BaseEventLoop.run_forever",),
    "asyncio.runners": ("Runner.run",),  # uvloop's loop has no frame of its own
    "celery.worker.loops": ("asynloop", "synloop"),
    "cheroot.server": ("HTTPServer.serve",),
    "cheroot.workers.threadpool": ("WorkerThread._process_connections_until_interrupted", "WorkerThread.run"),
    "concurrent.futures.thread": ("_worker",),
    "eventlet.wsgi": ("HttpProtocol.handle", "server"),
    "gevent.pywsgi": ("WSGIHandler.handle",),
    "gunicorn.workers.base_async": ("AsyncWorker.handle", "AsyncWorker.handle_http2"),
    "gunicorn.workers.ggevent": ("GeventWorker.run",),
    "gunicorn.workers.gthread": ("ThreadWorker.run", "ThreadWorker.handle_http2"),
    "gunicorn.workers.sync": ("SyncWorker.run_for_one", "SyncWorker.run_for_multiple"),
    "socketserver": ("BaseServer.serve_forever", "BaseServer.handle_request"),
    "trio._core._run": ("run",),
    "trio._core._thread_cache": ("WorkerThread._work",),
    "waitress.task": ("ThreadedTaskDispatcher.handler_thread",),
    "waitress.wasyncore": ("loop",),
}

#: What waits for the next piece of work and also calls it: it waits while one of these is right above it, or, for "",
#: nothing is.
_CALLERS: dict[str, _Names] = {
    "anyio._backends._asyncio": {"WorkerThread.run": ("Queue.get",)},
    "billiard.pool": {"Worker.workloop": ("Worker._make_protected_receive.<locals>.receive",)},
    "concurrent.futures.process": {"_process_worker": ("Queue.get",)},
    "http.server": {"BaseHTTPRequestHandler.handle_one_request": ("SocketIO.readinto",)},
    "multiprocessing.pool": {"worker": ("SimpleQueue.get", "")},
}

#: What waits for the end of the process, in the middle of an application that was called once: ASGI's lifespan.
_RESTS: _Names = {
    "gunicorn.asgi.lifespan": ("LifespanManager._receive",),
    "hypercorn.asyncio.lifespan": ("Lifespan.asgi_receive",),
    "hypercorn.trio.lifespan": ("Lifespan.asgi_receive",),
    "uvicorn.lifespan.on": ("LifespanOn.receive",),
}

#: The last parameters of an application by which servers call it.
_CALLS = (("scope", "receive", "send"), ("environ", "start_response"))


def between_works(frames: Sequence[FrameType]) -> bool:
    """Whether a task with this stack, innermost frame first, is between two pieces of work, as far as that can tell."""
    known = _known(len(sys.modules))
    worker = application = False
    above = ""
    for frame in frames:
        code = frame.f_code
        role = known.get(id(code), _NONE)[1]
        if role == _REST:
            return True
        if role == _WORK or _is_call(code):
            return worker and not application
        if role == _WORKER or above in role:
            worker, application = True, False
        elif not is_library(code.co_filename):
            application = True
            if not worker:
                return False
        above = code.co_qualname
    return True


def is_work(code: CodeType | None) -> bool:
    """Whether this is what runs one piece of work."""
    if code is None:
        return False
    return _known(len(sys.modules)).get(id(code), _NONE)[1] == _WORK or _is_call(code)


_WORK, _WORKER, _REST = ("work",), ("worker",), ("rest",)
_NONE: tuple[CodeType | None, tuple[str, ...]] = None, ()


@functools.lru_cache(maxsize=1)
def _known(modules: int) -> dict[int, tuple[CodeType | None, tuple[str, ...]]]:
    """The code and role of each function that has one, by the id of the code; a caller's role is what is above it while
    it waits. `modules`: how many there are, so that this is found out anew when one was imported."""
    roles: dict[CodeType, tuple[str, ...]] = {}
    for names, role in ((_WORKS, _WORK), (_WORKERS, _WORKER), (_RESTS, _REST)):
        for function in _functions(names):
            roles[_original(function)] = role
    for module, callers in _CALLERS.items():
        for name, waits in callers.items():
            for function in _functions({module: (name,)}):
                roles[_original(function)] = waits
    return {id(code): (code, role) for code, role in roles.items()}


def _functions(names: _Names) -> Iterator[FunctionType]:
    for module, functions in names.items():
        for name in functions if module in sys.modules else ():
            function: Any = sys.modules[module]
            for part in name.split("."):
                function = vars(function).get(part) if hasattr(function, "__dict__") else None
            if isinstance(function, FunctionType):
                yield function


def _is_call(code: CodeType) -> bool:
    names = code.co_varnames[: code.co_argcount]
    return names[-3:] == _CALLS[0] or names[-2:] == _CALLS[1]


@functools.cache
def is_library(file: str) -> bool:
    """Whether this is code of the standard library, of an installed package, or a command that one brought along."""
    return file.startswith(("<frozen ", "<livepatch>")) or os.path.realpath(file).startswith(_libraries())


@functools.cache
def _libraries() -> tuple[str, ...]:
    import sysconfig  # not before it is needed: the agent is to stay small

    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    site = sys.modules.get("site")  # a distribution may have folders of its own, such as Debian's dist-packages
    folders += site.getsitepackages() if site is not None else []
    return tuple(os.path.realpath(folder) + "/" for folder in folders)


# -- where works end --------------------------------------------------------------------------------------------

#: Hooked functions with what they carried, and what they carry now.
_hooked: list[tuple[FunctionType, CodeType, CodeType]] = []


def _original(function: FunctionType) -> CodeType:
    return next((before for hooked, before, _ in _hooked if hooked is function), function.__code__)


def hook(transition: Transition) -> None:
    """Whoever returns from a work looks at itself, for as long as this transition runs.

    What a patch redirects, or somebody else has changed, is left alone; there the rounds have to do.
    """
    ours = {id(code) for redirection in redirect.redirections.values() for code in redirection.codes()}
    for function in _functions(_WORKS):
        code = function.__code__
        if kind(code) == "function" and id(code) not in ours and function not in [f for f, _, _ in _hooked]:
            version = FunctionType(
                code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
            )
            version.__kwdefaults__ = function.__kwdefaults__
            item = (function.__module__, function.__qualname__) == _ITEM
            enter = _item_enterer(transition, version) if item else _enterer(version)
            hooked = trampoline.trampoline(code, enter, _never, bool, _leaver(transition), exact=False)
            _hooked.append((function, code, hooked))
            function.__code__ = hooked
    _watch_items(transition)


def unhook() -> None:
    """The transition is over. Somebody who exchanged the code after us keeps it."""
    while _items:
        cls, before, replaced = _items.pop()
        if cls.__init__ is replaced:
            cls.__init__ = before
    _submitters.clear()
    while _hooked:
        function, before, ours = _hooked.pop()
        if function.__code__ is ours:
            function.__code__ = before


def _enterer(version: FunctionType) -> Callable[[], Any]:
    return lambda: (version, True)


def _never(started: Any) -> Any:
    return started


def _leaver(transition: Transition) -> Callable[[Any], None]:
    def leave(token: Any) -> None:
        transition.leave_work(between_works, sys._getframe(1).f_back)

    return leave


# -- works that cross threads -----------------------------------------------------------------------------------

_ITEM = "concurrent.futures.thread", "_WorkItem.run"

#: The class of work items, how it makes one, and how it does so meanwhile.
_items: list[tuple[Any, Any, Any]] = []

#: Who has submitted a work item that has not begun, by the id of the item.
_submitters: dict[int, Hashable] = {}


def _watch_items(transition: Transition) -> None:
    cls = getattr(sys.modules.get("concurrent.futures.thread"), "_WorkItem", None)
    if cls is None or _items:
        return
    init = cls.__init__

    def __init__(item: object, *args: Any, **kwargs: Any) -> None:
        init(item, *args, **kwargs)
        _submitters[id(item)] = transition.current()

    cls.__init__ = __init__
    _items.append((cls, init, __init__))


def _item_enterer(transition: Transition, version: FunctionType) -> Callable[[], Any]:
    def enter() -> tuple[Any, Any]:
        frame = sys._getframe(1)
        # An item that is not known was submitted before anybody could move.
        submitter = _submitters.pop(id(frame.f_locals["args"][0]), None)
        transition.follow(submitter, between_works, frame.f_back)
        return version, True

    return enter
