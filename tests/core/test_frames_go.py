"""A look at all stacks keeps nobody's frames: with them it would keep their locals, until a collection comes.

A snapshot has the frame of who makes it, too, so a variable of that frame which holds the snapshot closes a circle.
What threads had in their frames is then freed by the collector, in livepatch's thread; 3.12.1 crashes on some of it.
"""

import gc
import threading
import weakref

import pytest

import livepatch as lp
from livepatch.core import stacks
from livepatch.core.tasks import greenlet, threads


class Local:
    pass


@pytest.mark.parametrize(
    "look", [stacks.thread_stacks, threads.KIND.tasks, threads.KIND.finished, greenlet.KIND.tasks, lp.tasks]
)
def test_what_a_thread_had_dies_with_its_frames(look):
    inside, leave, found = threading.Event(), threading.Event(), []

    def work():
        local = Local()
        found.append(weakref.ref(local))
        inside.set()
        leave.wait()

    thread = threading.Thread(target=work)
    gc.collect()
    gc.disable()
    try:
        thread.start()
        inside.wait()
        look()
        leave.set()
        thread.join()
        assert found[0]() is None
    finally:
        gc.enable()
