"""Every line gets the answer that JSON-RPC and our sentences promise, whatever it holds."""

from __future__ import annotations

import errno
import json

import pytest

from livepatch.agent import rpc
from livepatch.core.model import LivepatchError


def add(caller, *, left: int, right: int = 1):
    return left + right


def refuse(caller, *, why: str):
    raise LivepatchError(errno.EBUSY, why)


def stumble(caller):
    raise KeyError("unforeseen")


METHODS = {"add": add, "refuse": refuse, "stumble": stumble}


def ask(line):
    reply = rpc.answer(line if isinstance(line, bytes) else json.dumps(line).encode(), METHODS, None)
    return None if reply is None else json.loads(reply)


def request(method, **params):
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


def test_a_result_comes_with_the_number_of_its_request():
    assert ask(request("add", left=2, right=3)) == {"jsonrpc": "2.0", "id": 7, "result": 5}


def test_parameters_may_have_defaults():
    assert ask(request("add", left=2))["result"] == 3


def test_a_reply_is_one_line():
    reply = rpc.answer(json.dumps(request("refuse", why="two\nlines")).encode(), METHODS, None)
    assert reply.endswith(b"\n")
    assert reply.count(b"\n") == 1


@pytest.mark.parametrize(
    ("line", "code", "number"),
    [
        pytest.param(b"nonsense", rpc.PARSE_ERROR, "EBADMSG", id="no JSON"),
        pytest.param(b"\xff\xfe", rpc.PARSE_ERROR, "EBADMSG", id="no text"),
        pytest.param(b"[" * 100_000, rpc.PARSE_ERROR, "EBADMSG", id="too deep"),
        pytest.param(b"[]", rpc.INVALID_REQUEST, "EBADMSG", id="no object"),
        pytest.param(b'{"id": 1}', rpc.INVALID_REQUEST, "EBADMSG", id="no method"),
        pytest.param(b'{"id": 1, "method": 5}', rpc.INVALID_REQUEST, "EBADMSG", id="method is no name"),
        pytest.param(b'{"id": 1, "method": "add", "params": [1]}', rpc.INVALID_PARAMS, "EINVAL", id="by position"),
        pytest.param(request("nothing"), rpc.UNKNOWN_METHOD, "ENOSYS", id="unknown method"),
        pytest.param(request("__init__"), rpc.UNKNOWN_METHOD, "ENOSYS", id="not a method"),
        pytest.param(request("add"), rpc.INVALID_PARAMS, "EINVAL", id="missing parameter"),
        pytest.param(request("add", left=1, middle=2), rpc.INVALID_PARAMS, "EINVAL", id="unknown parameter"),
        pytest.param(request("add", left=1, caller=2), rpc.INVALID_PARAMS, "EINVAL", id="not a parameter"),
        pytest.param(request("add", left="1"), rpc.INVALID_PARAMS, "EINVAL", id="wrong type"),
        pytest.param(request("add", left=True), rpc.INVALID_PARAMS, "EINVAL", id="a bool is no int"),
    ],
)
def test_what_breaks_the_protocol_is_told_so(line, code, number):
    error = ask(line)["error"]
    assert error["code"] == code
    assert error["data"]["symbol"] == number
    assert error["data"]["sentence"] == error["message"]


def test_a_refusal_carries_errno_and_sentence():
    error = ask(request("refuse", why="not now."))["error"]
    assert error == {
        "code": rpc.REFUSED,
        "message": "not now.",
        "data": {"errno": errno.EBUSY, "symbol": "EBUSY", "sentence": "not now."},
    }


def test_an_unforeseen_exception_is_an_answer_with_a_traceback():
    data = ask(request("stumble"))["error"]["data"]
    assert data["symbol"] == "EIO"
    assert "KeyError" in data["sentence"]
    assert "in stumble" in data["traceback"]


@pytest.mark.parametrize("method", ["add", "refuse", "nothing"])
def test_a_notification_is_never_answered(method):
    assert ask({"jsonrpc": "2.0", "method": method, "params": {}}) is None
