"""JSON-RPC 2.0, one message per line: a request line in, a response line out.

Parameters are by name only. Whatever goes wrong, `error.data` has the `errno` (and its name, `symbol`)
and the `sentence` for the user, so that a client needs no table of codes; an exception that nobody
foresaw brings its `traceback` along. A notification (a request without an id) is carried out and not
answered.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from typing import Any

from livepatch.core.model import LivepatchError

PARSE_ERROR, INVALID_REQUEST, UNKNOWN_METHOD, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
REFUSED = -32000  # a LivepatchError: a rule of livepatch said no

#: What a parameter may be, by its annotation.
_TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool}

Method = Callable[..., Any]


class _BadRequest(Exception):
    """The request breaks the protocol: JSON-RPC's code, an errno, and the sentence."""

    def __init__(self, code: int, number: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.number = code, number


def answer(line: bytes | bytearray, methods: Mapping[str, Method], caller: object) -> bytes | None:
    """Carry out one request line and return the response line, or None for a notification.

    Each method is called with `caller` (the connection) first and the parameters by keyword.
    """
    request: Any = None
    try:
        request = _parse(line)
        result = _bind(request, methods)(caller, **request.get("params", {}))
        reply: dict[str, Any] = {"result": result}
    except BaseException as error:  # a patch written by hand may call sys.exit()
        reply = {"error": _error(error)}
    if isinstance(request, dict) and "id" not in request and "method" in request:
        return None
    number = request.get("id") if isinstance(request, dict) else None
    return encode({"id": number, **reply})


def notification(method: str, params: dict[str, Any]) -> bytes:
    """A line that tells the other side something and wants no answer."""
    return encode({"method": method, "params": params})


def encode(message: dict[str, Any]) -> bytes:
    """A message as a line; what JSON has no word for goes as its text."""
    return json.dumps({"jsonrpc": "2.0", **message}, default=str, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes | bytearray) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise _BadRequest(PARSE_ERROR, errno.EBADMSG, "The request is not JSON.") from None
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        raise _BadRequest(INVALID_REQUEST, errno.EBADMSG, "The request is not a JSON-RPC request object.")
    if not isinstance(request.get("params", {}), dict):
        raise _BadRequest(INVALID_PARAMS, errno.EINVAL, "Parameters must be given by name.")
    return request


def _bind(request: dict[str, Any], methods: Mapping[str, Method]) -> Method:
    """The method that the request names, after its parameters were checked against the signature."""
    name, given = request["method"], request.get("params", {})
    method = methods.get(name)
    if method is None:
        raise _BadRequest(UNKNOWN_METHOD, errno.ENOSYS, f"The agent has no method '{name}'.")
    code = method.__code__
    known = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    for parameter in given.keys() - set(known):
        raise _BadRequest(INVALID_PARAMS, errno.EINVAL, f"'{name}' has no parameter '{parameter}'.")
    for parameter in known:
        wanted = _TYPES[method.__annotations__[parameter]]
        if parameter in given:
            if type(given[parameter]) is not wanted:
                raise _BadRequest(
                    INVALID_PARAMS, errno.EINVAL, f"'{parameter}' of '{name}' is not a {wanted.__name__}."
                )
        elif parameter not in (method.__kwdefaults__ or {}):
            raise _BadRequest(INVALID_PARAMS, errno.EINVAL, f"'{name}' needs the parameter '{parameter}'.")
    return method


def _error(error: BaseException) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if isinstance(error, _BadRequest):
        code, number, sentence = error.code, error.number, str(error)
    elif isinstance(error, LivepatchError):
        code, number, sentence = REFUSED, error.errno or errno.EINVAL, str(error)
    else:
        code, number = INTERNAL_ERROR, errno.EIO
        sentence = f"The agent failed with {type(error).__name__}: {error}"
        try:
            import traceback  # most agents never need it

            data["traceback"] = "".join(traceback.format_exception(error))
        except Exception:  # a program may have a module of its own that goes by the name of what it needs
            pass
    data.update(errno=number, symbol=errno.errorcode.get(number, str(number)), sentence=sentence)
    return {"code": code, "message": sentence, "data": data}
