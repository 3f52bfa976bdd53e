"""Live patching for running Python programs: the public names."""

from .agent import start_agent
from .core import shadow
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
from .core.registry import (
    disable_patch,
    enable_patch,
    force_transition,
    patches,
    tasks,
    unload_patch,
    update_patch_state,
    wait,
    write_enabled,
)

__version__ = "0.1.0"

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
    "enable_patch",
    "force_transition",
    "patches",
    "shadow",
    "start_agent",
    "tasks",
    "unload_patch",
    "update_patch_state",
    "wait",
    "write_enabled",
]
