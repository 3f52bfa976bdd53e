"""The public names, and with them all of the core and the agent; `livepatch/__init__.py` says when they come."""

from .agent.process import start_agent
from .core import shadow
from .core.attributes import tree
from .core.instances import each_instance
from .core.log import dmesg
from .core.model import (
    Body,
    Callbacks,
    Func,
    LivepatchError,
    Object,
    Patch,
    PatchStatus,
    State,
    TaskStatus,
)
from .core.modules import unload_module
from .core.registry import (
    disable_patch,
    enable_patch,
    force_transition,
    patches,
    set_redirection,
    tasks,
    unload_patch,
    update_patch_state,
    wait,
    write_enabled,
)
from .core.state import get_prev_state, get_state

__all__ = [
    "Body",
    "Callbacks",
    "Func",
    "LivepatchError",
    "Object",
    "Patch",
    "PatchStatus",
    "State",
    "TaskStatus",
    "disable_patch",
    "dmesg",
    "each_instance",
    "enable_patch",
    "force_transition",
    "get_prev_state",
    "get_state",
    "patches",
    "set_redirection",
    "shadow",
    "start_agent",
    "tasks",
    "tree",
    "unload_module",
    "unload_patch",
    "update_patch_state",
    "wait",
    "write_enabled",
]
