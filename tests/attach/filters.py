"""System call filters for targets: written here, installed by the target itself."""

import struct

ALLOW, LOG, TRACE, SUPERVISOR, TRAP = 0x7FFF0000, 0x7FFC0000, 0x7FF00000, 0x7FC00000, 0x00030000
KILL_THREAD, KILL = 0, 0x80000000

#: A target that puts itself under the filter that it is told, then does what follows.
CONFINED = """
    import ctypes
    _libc = ctypes.CDLL(None, use_errno=True)
    def confine(text):
        program = ctypes.create_string_buffer(bytes.fromhex(text))
        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("first", ctypes.c_void_p)]
        given = Program(len(program.raw) // 8, ctypes.addressof(program))
        _libc.prctl(38, 1, 0, 0, 0)
        if _libc.prctl(22, 2, ctypes.byref(given)):
            raise OSError(ctypes.get_errno(), "prctl")
    say("ready")
    while text := hear():
        confine(text)
        say("confined")
"""


def errno_of(number):
    return 0x00050000 | number


def instruction(code, k=0, if_true=0, if_false=0):
    return struct.pack("=HBBI", code, if_true, if_false, k & 0xFFFFFFFF)


def assemble(rules, default=ALLOW):
    """A filter from (number, action) or (number, action, argument, mask, value): where (argument & mask) == value."""
    program = b""
    for number, action, *test in rules:
        answer = instruction(0x06, action)
        if test:
            argument, mask, value = test
            answer = (
                instruction(0x20, 16 + 8 * argument) + instruction(0x54, mask) + instruction(0x15, value, 0, 1) + answer
            )
        program += instruction(0x20, 0) + instruction(0x15, number, 0, len(answer) // 8) + answer
    return program + instruction(0x06, default)


#: What the filter of a container usually comes to on x86-64: what could reach the host fails, clone3 is hidden so that
#: the flags of clone can be looked at, and the rest may pass.
_HOST = (
    *(
        103,
        134,
        136,
        139,
        153,
        155,
        156,
        163,
        164,
        165,
        166,
        167,
        168,
        169,
        170,
        172,
        173,
        174,
        175,
        176,
        177,
        178,
        179,
    ),
    *(180, 206, 212, 227, 237, 238, 239, 246, 248, 249, 250, 272, 279, 298, 303, 304, 305, 308, 313, 320, 321, 323),
    *(425, 426, 427, 428, 429, 430, 431, 432, 433, 442),
)
CONTAINER = assemble(
    [
        *[(number, errno_of(1)) for number in _HOST],
        (435, errno_of(38)),
        *[(56, errno_of(1), 0, 1 << bit, 1 << bit) for bit in (17, 25, 26, 27, 28, 29, 30)],
        (41, errno_of(1), 0, 0xFFFFFFFF, 40),
    ]
)
