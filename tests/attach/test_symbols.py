"""Functions of an interpreter are found in memory, where its file is gone, stripped, or no interpreter at all."""

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig

import pytest
from tests.agent.targets import Target

from livepatch.attach.processor import Refusal, processor
from livepatch.attach.symbols import Maps, Memory, find_python

PLAIN = [getattr(sys, "_base_executable", sys.executable)]
NAMES = ("Py_AddPendingCall", "Py_Version", "PyGILState_Ensure", "PyRun_SimpleString")
MACHINE = processor().elf_machine
SHARED = bool(sysconfig.get_config_var("Py_ENABLE_SHARED"))

ASK = """
import ctypes
def address(name): return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
say(*(address(name) for name in {names!r}))
hear()
"""


def found(pid, *more):
    memory = Memory(pid)
    try:
        return find_python(memory, MACHINE, NAMES, more)
    finally:
        memory.close()


def told(target):
    return dict(zip(NAMES, map(int, target.hear().split()), strict=True))


def test_it_agrees_with_the_dynamic_linker():
    with Target(ASK.format(names=NAMES), command=PLAIN) as target:
        expected = told(target)
        python = found(target.pid, "PyLong_FromLong", "no_such_function")
        assert {name: python.addresses[name] for name in NAMES} == expected
        assert "PyLong_FromLong" in python.addresses
        assert "no_such_function" not in python.addresses


def test_the_version_can_be_read_there():
    with Target("say('ready'); hear()", command=PLAIN) as target:
        target.hear()
        memory = Memory(target.pid)
        (version,) = memory.unpack("<Q", found(target.pid).addresses["Py_Version"])
        assert version == sys.hexversion
        memory.close()


def copied(folder, strip=False):
    """This interpreter as a file of its own, with its library beside it."""
    executable = folder / "python3"
    shutil.copy(PLAIN[0], executable)
    files = [executable]
    if SHARED:
        name = sysconfig.get_config_var("INSTSONAME")
        shutil.copy(os.path.join(sysconfig.get_config_var("LIBDIR"), name), folder / name)
        files.append(folder / name)
    if strip:
        subprocess.run(["strip", *map(str, files)], check=True)
    return files, {"LD_LIBRARY_PATH": str(folder), "PYTHONHOME": sys.base_prefix}


@pytest.mark.skipif(shutil.which("strip") is None, reason="needs binutils")
def test_a_stripped_interpreter_whose_files_are_gone(tmp_path):
    files, env = copied(tmp_path, strip=True)
    with Target(ASK.format(names=NAMES), command=[str(files[0])], env=env) as target:
        expected = told(target)
        for file in files:
            file.unlink()
        python = found(target.pid)
        assert {name: python.addresses[name] for name in NAMES} == expected


def test_a_program_without_an_interpreter():
    with subprocess.Popen(["sleep", "100"]) as process:
        with pytest.raises(Refusal, match="has no symbols of a Python interpreter"):
            found(process.pid)
        process.kill()


def test_an_interpreter_that_lacks_something():
    with Target("say('ready'); hear()", command=PLAIN) as target:
        target.hear()
        memory = Memory(target.pid)
        with pytest.raises(Refusal, match=r"has no PyNew_Function; livepatch can attach to CPython 3\.11 or newer"):
            find_python(memory, MACHINE, ("Py_AddPendingCall", "PyNew_Function"))
        memory.close()


def test_a_program_for_another_processor():
    with Target("say('ready'); hear()", command=PLAIN) as target:
        target.hear()
        memory = Memory(target.pid)
        with pytest.raises(Refusal, match="is a program for another kind of processor"):
            find_python(memory, 8, NAMES)
        memory.close()


EMBEDDED = """
#include <Python.h>
int main(int argc, char **argv) {
    Py_InitializeEx(0);
    PyRun_SimpleString(argv[2])  /* after -c */;
    return Py_FinalizeEx();
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.skipif(
    not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")), reason="needs Python's headers"
)
def test_an_interpreter_inside_another_program(tmp_path):
    (tmp_path / "program.c").write_text(EMBEDDED)
    where = sysconfig.get_config_var("LIBDIR")
    library = f"-lpython{sysconfig.get_config_var('LDVERSION')}"
    made = subprocess.run(
        ["gcc", f"-I{sysconfig.get_paths()['include']}", "program.c", f"-L{where}", library, "-rdynamic"]
        + ["-ldl", "-lm", "-lutil", "-lpthread", f"-Wl,-rpath,{where}", "-o", "program"],
        cwd=tmp_path,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("this Python cannot be linked to")
    program = [str(tmp_path / "program")]
    with Target(ASK.format(names=NAMES), command=program, env={"PYTHONHOME": sys.base_prefix}) as target:
        expected = told(target)
        python = found(target.pid)
        assert {name: python.addresses[name] for name in NAMES} == expected


def test_mappings_are_found_by_address():
    maps = Maps(os.getpid())
    here = ctypes.cast(ctypes.pythonapi.Py_AddPendingCall, ctypes.c_void_p).value
    assert maps.at(here).executable
    assert "python" in maps.at(here).path
    assert not maps.at(here).c_library
    libc = maps.at(ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value)
    assert libc.c_library
    assert maps.at(1) is None


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("/lib/x86_64-linux-gnu/libc.so.6", True),
        ("/lib/x86_64-linux-gnu/libc-2.31.so", True),
        ("/lib64/ld-linux-x86-64.so.2", True),
        ("/lib/ld-musl-x86_64.so.1", True),
        ("/lib/libm.so.6", True),
        ("[vdso]", True),
        ("/usr/lib/libcrypto.so.3", False),
        ("/usr/lib/libldap.so.2", False),
        ("/usr/bin/python3.11", False),
        ("/usr/lib/libmagic.so.1", False),
        ("", False),
    ],
)
def test_what_a_c_library_is_called(path, is_one):
    from livepatch.attach.symbols import Mapping

    assert Mapping(0, 1, "r-xp", 0, path).c_library == is_one
