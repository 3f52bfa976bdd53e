"""A cumulative patch that takes over a state, and its data, from the one that it replaces.

The callbacks of a replaced patch do not run, so nobody puts the limit back in between. This patch knows the state, in a
newer version: that is why it may be loaded over four.py, and why four.py may not be loaded over this one.
"""

import livepatch as lp

LIMIT = "office: the limit is raised"

state = lp.State(LIMIT, 2)


# The patch before, if there is one, owns the limit until this one is complete: it may still be taken back.
def pre_patch(office: lp.Object) -> None:
    if lp.get_prev_state(LIMIT) is None:
        state.data = office.module.LIMIT


# Complete. The patch before is still listed, for the last time.
def post_patch(office: lp.Object) -> None:
    previous = lp.get_prev_state(LIMIT)
    if previous is not None:
        state.data = previous.data
    office.module.LIMIT = 6


# Only when it is being disabled, not when it is taken back before it was complete.
def pre_unpatch(office: lp.Object) -> None:
    office.module.LIMIT = state.data


# In both cases. In the second the patch before is the owner, and has its own data.
def post_unpatch(office: lp.Object) -> None:
    state.data = None


callbacks = lp.Callbacks(pre_patch, post_patch, pre_unpatch, post_unpatch)

__livepatch__ = lp.Patch("six", [lp.Object(None, callbacks=callbacks)], replace=True, states=[state])
