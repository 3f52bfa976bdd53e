"""Print the system call filters of a process's main thread, oldest first, each as a line of hexadecimal digits. A
program of its own.

    filters.py PID [MARK]

The kernel shows them only of a thread that is traced and stopped. If this ends, however it does, the kernel lets
the thread go on as if nothing had been. The mark tells other attaches whose this is, see `mark`. Only the standard
library is needed, and only what `-I -S` leaves of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

_DETACH, _SEIZE, _INTERRUPT, _GET_FILTER = 17, 0x4206, 0x4207, 0x420C
_WALL = 0x40000000
#: A filter has no more instructions, of 8 bytes each.
_LONGEST = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def main(pid: int) -> None:
    _ptrace(_SEIZE, pid)
    _ptrace(_INTERRUPT, pid)
    _, status = os.waitpid(pid, _WALL)
    found: list[str] = []
    program = ctypes.create_string_buffer(8 * _LONGEST)
    try:
        while True:
            length = _ptrace(_GET_FILTER, pid, len(found), ctypes.addressof(program))
            found.append(program.raw[: 8 * length].hex())
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    # Perhaps it stopped because of a signal: that is still to come then.
    _ptrace(_DETACH, pid, 0, 0 if status >> 16 else os.WSTOPSIG(status))
    print("\n".join(found))


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    result: int = _libc.ptrace(request, pid, address, data)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


if __name__ == "__main__":
    main(int(sys.argv[1]))
