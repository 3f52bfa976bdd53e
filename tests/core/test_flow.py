"""What bytecode tells of a call that is under way, the same on every version."""

import asyncio
import contextlib
import sys
import threading

import pytest
from tests.core import kit

from livepatch.core import flow

CONTEXT = contextlib.nullcontext()


class Met(Exception):
    """Ends a function that has no other end."""


met = []


def meet():
    """Look at the caller, and let it go on by raising if it has been here before."""
    frame = sys._getframe(1)
    if met:
        raise Met
    met.append((flow.never_returns(frame), flow.may_repeat(frame), flow.called(frame)))


def for_ever():
    while True:
        meet()


def for_ever_whatever_happens():
    while True:
        try:
            with CONTEXT:
                meet()
        except KeyError:
            continue
        finally:
            len(met)


def until_it_is_told():
    while not met:
        meet()


def until_something_raises():
    while True:
        try:
            meet()
        except Met:
            return


def with_a_way_out():
    while True:
        if met:
            break
        meet()


def between_two_loops():
    for _ in range(2):
        len(met)
    meet()
    for _ in range(2):
        len(met)


def in_a_comprehension():
    return [meet() for _ in range(1)]


def in_the_iterable_of_a_loop():
    for _ in (meet(),):
        len(met)


def in_what_is_cleaned_up_afterwards():
    try:
        with CONTEXT:
            len(met)
        with CONTEXT:
            meet()
    except KeyError:
        len(met)
    finally:
        len(met)
    return len(met)


def that_tries_again():
    """By way of the handler only."""
    attempts = 0
    while attempts < 1:
        try:
            meet()
            return
        except KeyError:
            attempts += 1


def that_raises():
    meet()
    raise Met


async def for_ever_in_a_coroutine():
    while True:
        meet()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("function", "never", "repeats"),
    [
        (for_ever, True, True),
        (for_ever_whatever_happens, True, True),
        (until_it_is_told, False, True),
        (until_something_raises, True, True),
        (with_a_way_out, False, True),
        (between_two_loops, False, False),
        (in_a_comprehension, False, True),
        (in_the_iterable_of_a_loop, False, False),
        (in_what_is_cleaned_up_afterwards, False, False),
        (that_tries_again, False, True),
        (that_raises, True, False),
    ],
)
def test_where_it_can_go(function, never, repeats):
    met.clear()
    with contextlib.suppress(Met):
        function()
    assert met == [(never, repeats, "meet")]


def test_a_coroutine():
    met.clear()
    with pytest.raises(Met):
        asyncio.run(for_ever_in_a_coroutine())
    assert met == [(True, True, "meet")]


def test_to_await_is_no_loop():
    """It is compiled to one."""

    async def waits(event):
        await event.wait()

    async def main():
        task = asyncio.create_task(waits(asyncio.Event()))
        await asyncio.sleep(0)
        frame = task.get_coro().cr_frame
        task.cancel()
        return flow.never_returns(frame), flow.may_repeat(frame), flow.called(frame)

    assert asyncio.run(main()) == (False, False, "")


# -- what is called ------------------------------------------------------------------------------------------------


class Spy:
    """Looks at who calls it."""

    inner = property(lambda self: self)

    def look(self, *_, **__):
        seen.append(flow.called(sys._getframe(1)))
        return self

    def __getitem__(self, key):
        return self

    def __enter__(self):
        self.look()
        seen[-1] = flow.called(sys._getframe(1))

    def __exit__(self, *_):
        pass


spy, seen = Spy(), []


def calls():
    local, names = spy, {}
    yield spy.look()
    yield local.inner.look(len("a"), key=min(1, 2))
    yield spy.look(
        spy[0],
    )
    yield spy.look().look()
    yield spy[0].look(*met, **names)


def test_what_is_called():
    seen.clear()
    assert list(calls()) == [spy] * 5
    assert seen == ["spy.look", "local.inner.look", "spy.look", "spy.look", "look", "look"]


def test_what_a_with_statement_enters():
    seen.clear()
    with spy:
        pass
    assert seen[-1] in ("with spy", "with")


# -- what it keeps -------------------------------------------------------------------------------------------------


def test_what_was_read_goes_with_the_code():
    namespace = {"meet": meet}
    exec("def f(): meet()", namespace)
    met.clear()
    namespace["f"]()
    known = id(namespace["f"].__code__)
    assert known in flow._flows
    del namespace["f"]
    assert known not in flow._flows


def test_code_that_makes_no_sense_tells_nothing():
    """Somebody made it by hand."""
    code = test_where_it_can_go.__code__.replace(co_names=())
    assert not flow._flow(code).calls


def test_the_frames_below_every_thread():
    """What starts a thread is passed once, whatever it is compiled to."""
    ready, go = threading.Event(), threading.Event()

    def waits():
        ready.set()
        go.wait()

    thread = threading.Thread(target=waits)
    thread.start()
    ready.wait()
    kit.until(lambda: kit.asleep(thread.ident))
    frame = sys._current_frames()[thread.ident]
    while frame.f_code is not waits.__code__:
        frame = frame.f_back
    found = []
    while frame is not None:
        found.append((frame.f_code.co_name, flow.called(frame), flow.never_returns(frame), flow.may_repeat(frame)))
        frame = frame.f_back
    go.set()
    thread.join()
    assert found[0] == ("waits", "go.wait", False, False)
    assert found[1] == ("run", "self._target", False, False)
    assert not any(never or repeats for _, _, never, repeats in found)
