"""The state machine of the consistency model, with tasks that do not exist and without a single Python function.

The fake program has the functions f and g in an old and a new version ("f old", "f new"), each behind a trampoline
("f tramp"). A test plays the trampolines itself: `choose` on the way in, `leave` on the way out.
"""

import threading

import pytest

from livepatch.core import switch
from livepatch.core.kind import IDLE, PATCHED, UNPATCHED
from livepatch.core.transition import SIGNALS_TIMEOUT, Transition, exempt_threads, switch_lock
from livepatch.testing import FakeKind, FakeSuspended, FakeTask, fake_code, fake_footprint

FOOTPRINT = fake_footprint(
    ["f old", "g old", "gen old"],
    ["f new", "g new", "gen new"],
    {"f tramp": ["f old", "f new"], "g tramp": ["g old", "g new"]},
)


class Play:
    """A transition of some fake tasks."""

    def __init__(self, *tasks, state=PATCHED):
        self.kind = FakeKind(*tasks)
        self.woken = 0
        self.transition = Transition(state, [self.kind], FOOTPRINT, self._wake)

    def _wake(self):
        self.woken += 1

    def start(self, *suspended_functions):
        self.transition.suspended.codes = [fake_code(name) for name in suspended_functions]
        self.transition.start()
        return self

    def enter(self, task, function="f", counted=True):
        """The task calls a trampoline: the frame comes first, the question after. Gives the token."""
        self.kind.running = task
        task.stack.append(f"{function} tramp")
        caller = FakeTask("caller", *task.stack[:-1])
        state, token = self.transition.choose(counted, caller.frame())
        task.stack.append(f"{function} {'old' if state == UNPATCHED else 'new'}")
        return token

    def leave(self, task, token, counted=True):
        self.kind.running = task
        task.stack.pop()
        if token is not None:
            self.transition.leave(token, counted, True, FakeTask("caller", *task.stack[:-1]).frame())
        task.stack.pop()

    def suspend(self, task, name):
        """The task makes a generator of this version through a trampoline."""
        self.kind.running = task
        made = FakeSuspended(name)
        self.transition.track(made)
        return made

    def state(self, task):
        return self.transition.state_of(task)

    def complete(self):
        return self.transition.try_complete()


@pytest.fixture(autouse=True)
def no_exempt_threads_stay():
    before = set(exempt_threads)
    yield
    exempt_threads.clear()
    exempt_threads.update(before)


# -- moving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "left"), [(PATCHED, "f old"), (UNPATCHED, "f new")])
def test_who_is_in_the_version_to_be_left_holds_the_transition(state, left):
    inside, idle = FakeTask("inside", "main", left, "read"), FakeTask("idle", "main", "wait")
    play = Play(inside, idle, state=state).start()
    assert not play.complete()
    assert (play.state(inside), play.state(idle)) == (1 - state, state)
    assert play.transition.pending == {inside}
    inside.stack = ["main"]
    assert play.complete()


@pytest.mark.parametrize(("state", "other"), [(PATCHED, "f new"), (UNPATCHED, "f old")])
def test_who_is_in_the_version_to_come_is_not_held(state, other):
    """Never checked: the version that is about to become active. Somebody may be in it after a reversal."""
    play = Play(FakeTask("t", "main", other), state=state).start()
    assert play.complete()


def test_nobody_moves_before_all_trampolines_are_installed():
    """Between init and start a task that asks gets the old version, whatever its stack looks like."""
    task = FakeTask("t")
    play = Play(task)
    token = play.enter(task)
    assert task.stack == ["f tramp", "f old"]
    play.leave(task, token)
    assert play.state(task) == UNPATCHED
    play.enter(task)
    assert task.stack == ["f tramp", "f old"]


def test_a_call_that_began_before_the_start_is_seen_by_its_stack():
    task = FakeTask("t")
    play = Play(task)
    token = play.enter(task)
    play.start()
    assert not play.complete()
    play.leave(task, token)
    assert play.state(task) == UNPATCHED  # its token is of another epoch: it does not move by itself, a round moves it
    assert play.complete()


def test_a_trampoline_that_has_chosen_and_not_called_yet_holds_its_task():
    """The naive check looks for old versions only: here none is on the stack, and one is about to be."""
    task = FakeTask("t", "main")
    play = Play(task).start("gen old")
    task.stack.append("f tramp")
    play.kind.running = task
    state, _ = play.transition.choose(False, None)
    assert state == UNPATCHED
    assert not play.complete()
    task.stack.append("signal handler")  # in just that gap
    assert not play.complete()
    assert play.state(task) == UNPATCHED


def test_a_trampoline_that_has_called_a_new_version_holds_nobody():
    task = FakeTask("t", "main", "f tramp", "f new", "g tramp", "g new")
    assert Play(task).start().complete()


def test_a_new_version_above_another_functions_trampoline_does_not_excuse_it():
    task = FakeTask("t", "main", "f tramp", "g new")
    assert not Play(task).start().complete()


def test_calls_under_way_hold_a_task_whose_stack_does_not_show_them():
    """Somebody switched stacks below Python: the trampoline's frame is nowhere to be seen."""
    task = FakeTask("t", "main")
    play = Play(task).start()
    play.kind.running = task
    _, token = play.transition.choose(True, None)
    assert not play.complete()
    play.transition.leave(token, True, True, task.frame())
    assert play.transition.moved == {"stack check": 0, "exit": 1, "idle": 0, "force": 0}
    assert play.complete()


def test_exit_switching_moves_a_task_when_its_outermost_trampoline_returns():
    task = FakeTask("t", "main", visible=False)
    play = Play(task).start()
    outer = play.enter(task, "f")
    inner = play.enter(task, "g")
    play.leave(task, inner)
    assert play.state(task) == UNPATCHED
    play.leave(task, outer)
    assert play.state(task) == PATCHED
    assert play.transition.moved["exit"] == 1
    assert play.woken == 1  # nobody is left: a round is due at once


def test_exit_switching_looks_at_what_is_left_of_the_stack():
    """f was entered before the transition, so no trampoline counts it. A return from g must not move the task."""
    task = FakeTask("t", "main", "f old", visible=False)
    play = Play(task).start()
    play.leave(task, play.enter(task, "g"))
    assert play.state(task) == UNPATCHED
    assert play.enter(task, "g") is not None
    assert task.stack[-1] == "g old"


def test_a_task_never_sees_the_old_version_again_once_it_has_moved():
    task = FakeTask("t", "main")
    blocker = FakeTask("blocker", "f old")
    play = Play(task, blocker).start()
    assert not play.complete()
    for _ in range(3):
        assert play.enter(task) is None
        assert task.stack[-1] == "f new"
        play.leave(task, None)
        assert not play.complete()


def test_a_safe_point_moves_the_task_that_asks_and_nobody_else():
    task, other = FakeTask("t", "main", visible=False), FakeTask("other", "main", visible=False)
    play = Play(task, other).start()
    play.kind.running = task
    play.transition.update(task.frame())
    assert (play.state(task), play.state(other)) == (PATCHED, UNPATCHED)
    play.kind.running = other
    other.stack.append("f old")
    play.transition.update(other.frame())
    assert play.state(other) == UNPATCHED


# -- tasks that come and go --------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [True, False])
def test_a_task_born_during_the_transition_takes_the_state_of_its_creator(moved):
    creator = FakeTask("creator", *([] if moved else ["f old"]))
    play = Play(creator, FakeTask("blocker", "f old")).start()
    play.complete()
    child = FakeTask("child", creator=creator)
    play.kind.all.append(child)
    play.enter(child)
    assert child.stack[-1] == ("f new" if moved else "f old")
    assert (child in play.transition.pending) is not moved


def test_a_task_that_is_announced_has_its_state_before_it_runs():
    creator = FakeTask("creator", "f old")
    play = Play(creator).start()
    play.complete()
    child = FakeTask("child", "f old")
    play.transition.inherit(child, creator)
    play.kind.all.append(child)
    creator.stack.clear()
    assert not play.complete()
    assert (play.state(creator), play.state(child)) == (PATCHED, UNPATCHED)


def test_an_ident_that_is_used_again_forgets_who_had_it():
    """A child with the ident of a thread that had moved must not be taken for it, nor the other way round."""
    creator, ident = FakeTask("creator", "f old"), FakeTask("reused")
    play = Play(creator, ident).start()
    play.complete()
    assert play.state(ident) == PATCHED
    play.transition.inherit(ident, creator)
    assert play.state(ident) == UNPATCHED
    assert ident in play.transition.pending


def test_a_stranger_is_unpatched_and_waited_for():
    play = Play(FakeTask("blocker", "f old")).start()
    stranger = FakeTask("stranger", visible=False)
    play.enter(stranger)
    assert stranger.stack[-1] == "f old"
    assert stranger in play.transition.pending


def test_a_task_that_ends_is_not_waited_for():
    dying = FakeTask("dying", "f old")
    play = Play(dying).start()
    assert not play.complete()
    dying.done = True
    assert play.complete()


def test_an_exempt_thread_is_no_task_and_stays_in_the_old_world():
    ident = threading.get_ident()
    exempt_threads.add(ident)
    play = Play(FakeTask("blocker", "f old")).start()
    play.kind.running = None
    assert play.transition.choose(True, None) == (UNPATCHED, None)
    assert not play.transition.knows(ident)
    assert not play.transition.calls


# -- suspended frames ----------------------------------------------------------------------------------------------


def test_a_suspended_generator_holds_the_task_that_made_it_and_no_other():
    task, other = FakeTask("t", "main"), FakeTask("other", "main")
    play = Play(task, other).start()
    made = play.suspend(task, "gen old")
    assert not play.complete()
    assert (play.state(task), play.state(other)) == (UNPATCHED, PATCHED)
    made.gi_frame = None
    assert play.complete()


def test_a_suspended_generator_that_dies_is_forgotten():
    task = FakeTask("t", "main")
    play = Play(task).start()
    made = play.suspend(task, "gen old")
    assert not play.complete()
    del made
    assert play.complete()


def test_a_suspended_generator_of_the_new_version_holds_nobody():
    task = FakeTask("t", "main")
    play = Play(task).start()
    made = play.suspend(task, "gen new")
    assert play.complete()
    assert made.gi_frame


def test_what_a_task_leaves_behind_when_it_ends_holds_everybody():
    task, other = FakeTask("t", "main", visible=False), FakeTask("other", "main", visible=False)
    play = Play(task, other).start()
    made = play.suspend(task, "gen old")
    task.done = True
    assert not play.complete()
    other.visible = True
    assert not play.complete()
    assert play.state(other) == UNPATCHED
    made.gi_frame = None
    assert play.complete()


def test_calls_from_inside_a_stray_stay_in_its_world():
    """A generator of the old version that a moved task resumes: the naive answer is the task's state."""
    task, other = FakeTask("t", "main", visible=False), FakeTask("other", "main")
    play = Play(task, other).start()
    made = play.suspend(task, "gen old")
    assert not play.complete()
    assert play.state(other) == PATCHED
    other.stack += ["gen old"]
    play.enter(other, "g")
    assert other.stack == ["main", "gen old", "g tramp", "g old"]
    play.enter(other, "f")
    assert other.stack[-1] == "f old"
    other.stack = ["main"]
    play.enter(other, "g")  # outside of the stray it is in its own
    assert other.stack[-1] == "g new"
    del made


def test_calls_from_inside_of_what_runs_ahead_are_of_its_world():
    """A generator of the new version that a task which has not moved resumes, and one of the old inside of that."""
    task, stuck = FakeTask("t", "main"), FakeTask("stuck", "main", "f old")
    play = Play(task, stuck).start()
    assert not play.complete()
    ahead = play.suspend(task, "gen new")
    stuck.stack += ["gen new"]
    assert play.enter(stuck, "g") is None
    assert stuck.stack[-1] == "g new"
    assert not play.transition.calls
    stuck.stack[2:] = ["gen new", "helper", "gen old"]
    play.enter(stuck, "g")
    assert stuck.stack[-1] == "g old", "the innermost one decides"
    stuck.stack[2:] = []
    play.enter(stuck, "g")
    assert stuck.stack[-1] == "g old"
    del ahead


def test_the_exit_of_a_generator_in_another_task_moves_nobody_on_the_wrong_stack():
    """Begun by t, which is in f (entered before the transition), exhausted by `other`: whose stack is clean."""
    task, other = FakeTask("t", "main", "f old", visible=False), FakeTask("other", "main", visible=False)
    play = Play(task, other).start()
    play.kind.running = task
    _, token = play.transition.choose(False, task.frame())
    made = play.suspend(task, "gen old")
    play.kind.running = other
    made.gi_frame = None
    play.transition.leave(token, False, True, other.frame())
    assert play.state(task) == UNPATCHED
    play.enter(task, "g")
    assert task.stack[-1] == "g old"


# -- reversal ------------------------------------------------------------------------------------------------------


def test_reversal_completes_although_a_task_is_stuck_in_the_old_version():
    """A task that never moved is in the new target state already: it is not even looked at."""
    stuck, moved = FakeTask("stuck", "f old"), FakeTask("moved", "main")
    play = Play(stuck, moved).start()
    assert not play.complete()
    play.transition.reverse()
    assert play.transition.pending == {moved}
    assert play.complete()
    assert play.transition.goal.state == UNPATCHED


def test_reversal_waits_for_who_moved_and_is_in_the_new_version():
    stuck, moved = FakeTask("stuck", "f old"), FakeTask("moved", "main")
    play = Play(stuck, moved).start()
    assert not play.complete()
    play.enter(moved)
    play.transition.reverse()
    assert not play.complete()
    play.enter(moved, "g")
    assert moved.stack[-1] == "g new"  # it stays in its world until it is out
    moved.stack = ["main"]
    play.transition.calls.clear()
    assert play.complete()


def test_reversal_there_and_back_and_there():
    inside_old, inside_new = FakeTask("old", "f old"), FakeTask("new", "main")
    play = Play(inside_old, inside_new).start()
    assert not play.complete()
    inside_new.stack.append("f new")
    for goal in (UNPATCHED, PATCHED) * 4:
        play.transition.reverse()
        assert play.transition.goal.state == goal
        assert not play.complete()
        assert play.transition.pending == ({inside_new} if goal == UNPATCHED else {inside_old})
        assert (play.state(inside_old), play.state(inside_new)) == (UNPATCHED, PATCHED)
    inside_old.stack.clear()
    assert play.complete()


def test_a_token_of_before_a_reversal_moves_nobody():
    task = FakeTask("t", "main", visible=False)
    play = Play(task, FakeTask("blocker", "f old")).start()
    token = play.enter(task)
    play.transition.reverse()
    play.transition.reverse()
    play.leave(task, token)
    assert play.state(task) == UNPATCHED  # the round will see to it
    assert play.transition.calls == {}


def test_a_stray_of_one_direction_holds_nothing_in_the_other():
    task = FakeTask("t", "main")
    play = Play(task, FakeTask("other", "main")).start()
    made = play.suspend(task, "gen old")
    assert not play.complete()
    play.transition.reverse()
    assert play.complete()
    assert made.gi_frame


def test_reversal_starts_the_count_of_rounds_again():
    play = Play(FakeTask("blocker", "f old"), FakeTask("other", "f new")).start()
    for _ in range(SIGNALS_TIMEOUT):
        play.complete()
    play.transition.reverse()
    play.transition.reverse()
    play.complete()
    assert play.kind.nudged == 0


# -- force, signals, the end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [PATCHED, UNPATCHED])
def test_force_moves_everybody_and_completion_comes_with_the_next_round(state):
    forbidden = {PATCHED: "f old", UNPATCHED: "f new"}[state]
    stuck = FakeTask("stuck", forbidden)
    play = Play(stuck, FakeTask("free"), state=state).start()
    made = play.suspend(stuck, "gen old")
    assert not play.complete()
    play.transition.force()
    assert not play.transition.over
    assert not play.transition.pending
    assert play.transition.moved["force"] == 1
    assert play.complete()
    assert made.gi_frame


def test_force_breaks_the_promise_and_nothing_else():
    """A forced task in f old gets g new: that is what was asked for. Its way out must not confuse the counters."""
    stuck = FakeTask("stuck", "main")
    play = Play(stuck).start()
    token = play.enter(stuck)
    play.transition.force()
    play.enter(stuck, "g")
    assert stuck.stack == ["main", "f tramp", "f old", "g tramp", "g new"]
    play.leave(stuck, None)
    play.leave(stuck, token)
    assert play.transition.calls == {}
    assert play.complete()


def test_fake_signals_are_due_at_the_16th_round_in_vain_and_the_31st():
    play = Play(FakeTask("blocker", "f old")).start()
    nudged = []
    for number in range(1, 50):
        before = play.kind.nudged
        assert not play.complete()
        if play.kind.nudged != before:
            nudged.append(number)
    assert nudged == [16, 31, 46]


def test_between_completion_and_the_last_trampoline_everybody_gets_the_target():
    task = FakeTask("t")
    play = Play(task).start()
    assert play.complete()
    play.enter(task)
    assert task.stack[-1] == "f new"
    play.enter(FakeTask("stranger"))
    assert not play.transition.calls
    play.transition.stop()
    assert play.transition.choose(True, None) == (None, None)  # ask the function itself


def test_a_trampoline_that_was_left_behind_does_no_harm_to_later_ones():
    """Its call began in this transition and ends long after it."""
    task = FakeTask("t")
    play = Play(task).start()
    token = play.enter(task)
    play.transition.force()
    assert play.complete()
    play.transition.stop()
    play.leave(task, token)
    assert not play.transition.initial | play.transition.goal
    assert play.transition.pending == set()


def test_cancelling_gives_everybody_the_old_version():
    task = FakeTask("t")
    play = Play(task)
    play.transition.cancel()
    play.enter(task)
    assert task.stack[-1] == "f old"
    assert not play.transition.initial | play.transition.goal


@pytest.mark.parametrize("ending", ["complete", "cancel"])
def test_nothing_is_kept_of_a_transition_that_is_over(ending):
    task = FakeTask("t", "main")
    play = Play(task)
    if ending == "complete":
        play.start()
        made = play.suspend(task, "gen new")
        assert play.complete()
        del made
    else:
        play.transition.cancel()
    play.transition.stop()
    assert not play.transition.initial | play.transition.goal
    assert not play.transition.pending
    assert not play.transition.footprint.forbidden
    assert not play.transition.suspended.apart()
    assert play.kind.stopped == 1


def test_states_are_shown_as_the_kernel_shows_them():
    moved, stuck = FakeTask("moved"), FakeTask("stuck", "f old")
    play = Play(moved, stuck).start()
    play.complete()
    assert (IDLE, UNPATCHED, PATCHED) == (-1, 0, 1)
    assert (play.state(moved), play.state(stuck)) == (1, 0)
    assert play.transition.total == 2


# -- several threads ---------------------------------------------------------------------------------------------------


def test_a_checker_and_a_caller_exclude_each_other(monkeypatch):
    """While a checker holds the lock, a task that has not moved cannot choose: it waits in its trampoline."""
    monkeypatch.setattr(switch, "PATIENCE", 60)
    task = FakeTask("t", visible=False)
    play = Play(task).start()
    play.kind.running = task
    chosen = []
    caller = threading.Thread(target=lambda: chosen.append(play.transition.choose(True, None)))
    with play.transition.looking():
        caller.start()
        caller.join(0.05)
        assert not chosen
        play.transition.switch(task, "stack check")
    caller.join()
    assert chosen[0][0] == PATCHED


def test_who_has_not_moved_asks_as_long_as_somebody_looks():
    """What a trampoline reads without the lock: its frame is there already, so the next checker will see it."""
    task, blocker = FakeTask("t", visible=False), FakeTask("blocker", "f old")
    play = Play(task, blocker)
    assert task not in play.transition.stay, "nobody moves before the start, and nobody leaves by itself"
    play.start()
    assert task in play.transition.stay
    with play.transition.looking():
        assert task not in play.transition.stay
        with play.transition.looking():
            assert task not in play.transition.stay
        assert task not in play.transition.stay, "the outer one has not ended"
        play.transition.switch(task, "stack check")
    assert task not in play.transition.stay
    assert blocker in play.transition.stay
    play.transition.reverse()
    assert (task in play.transition.stay, blocker in play.transition.stay) == (True, False)
    play.transition.force()
    assert play.complete()
    assert not {task, blocker} & play.transition.stay


def test_nobody_is_moved_by_who_does_not_look():
    """A kind of task that only takes the lock would let a task choose between the look and the switch."""
    task = FakeTask("t", visible=False)
    play = Play(task).start()
    with switch_lock, pytest.raises(AssertionError, match="looking"):
        play.transition.switch(task, "stack check")
    assert play.state(task) == UNPATCHED


def test_who_may_be_inside_of_a_generator_of_the_other_world_has_to_ask():
    task, other = FakeTask("t", visible=False), FakeTask("other")
    play = Play(task, other, FakeTask("blocker", "f old")).start("gen new")
    play.complete()
    assert task in play.transition.stay
    made = play.suspend(other, "gen new")
    assert task not in play.transition.stay
    made.gi_frame = None
    play.complete()
    assert task in play.transition.stay


def test_the_end_of_a_generator_lets_a_task_look_again():
    """It was inside of one when it looked, and that one has no part in the count of calls."""
    task, blocker = FakeTask("t"), FakeTask("blocker", "f old")
    play = Play(task, blocker).start()
    outer = play.enter(task, "gen", counted=False)
    play.leave(task, play.enter(task, "g"))
    play.leave(task, outer, counted=False)
    assert play.state(task) == PATCHED


def test_the_lock_can_be_taken_again_by_who_interrupts():
    """A signal handler or finalizer that calls a patched function runs in the middle of anything."""
    task = FakeTask("t")
    play = Play(task).start()
    with switch_lock:
        play.enter(task)
    assert task.stack[-1] == "f old"


def test_the_first_kind_that_knows_the_running_task_decides():
    first, second = FakeKind(), FakeKind()
    transition = Transition(PATCHED, [first, second], FOOTPRINT, lambda: None)
    assert transition.current() == threading.get_ident()
    second.running = FakeTask("second")
    assert transition.current() is second.running
    first.running = FakeTask("first")
    assert transition.current() is first.running
