"""A system state: what a patch has done to the process besides exchanging functions, for the patches after it.

This one exchanges none. Its callbacks raise a limit, and take it back when it is disabled; so they must remember what
the limit was. They keep that as the data of a state, where a later patch finds it.
"""

import livepatch as lp

LIMIT = "office: the limit is raised"

state = lp.State(LIMIT, 1)


def pre_patch(office: lp.Object) -> None:
    state.data = office.module.LIMIT


def post_patch(office: lp.Object) -> None:
    office.module.LIMIT = 4


def pre_unpatch(office: lp.Object) -> None:
    office.module.LIMIT = state.data


def post_unpatch(office: lp.Object) -> None:
    state.data = None


callbacks = lp.Callbacks(pre_patch, post_patch, pre_unpatch, post_unpatch)

__livepatch__ = lp.Patch("four", [lp.Object(None, callbacks=callbacks)], states=[state])
