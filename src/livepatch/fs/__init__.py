"""`livepatch mount DIR`: the attribute trees of all prepared processes as files, through FUSE.

    DIR/PID/livepatch/NAME/{enabled,transition,force,replace,stack_order}
    DIR/PID/livepatch/NAME/OBJECT/{patched,FUNCTION,POSITION/}
    DIR/PID/task/ID/{patch_state,stack,comm}

`targets` finds the processes and speaks to their agents, `operations` turns what the kernel asks of a file system into
reads and writes of attributes, `mount` makes the mount and says why there can be none. The rules are nobody's here:
modes, values and errnos come from `core/attributes.py`, in the target.

The binding is mfusepy: it is kept up, is one file of ctypes over the system's libfuse 3, and so installs on every
Python without a compiler. The alternatives are not maintained (fusepy, llfuse, pyfuse3).
"""
