"""The inner half of the sandbox: a script of its own process that locks itself in, then runs a candidate's Python.

It takes limits (`setrlimit`), loads the modules that the candidate may use, and installs a seccomp filter that lets
through only the system calls of pure computing: no file can be opened, no socket made, no process or thread started,
no signal sent, no limit raised. Every other call fails with EPERM, calls that a newer kernel adds included. It checks
that the filter holds before it says that it is ready, and runs nothing where it does not.

Started by path with the bare interpreter, so it imports nothing of ours, and little else: each module here is paid for
by each candidate (json, traceback, platform and typing are half of a start). The outer half,
`jobs/zaya/sandbox/outer.py`, holds the clock and the caps on output, and knows the answers; none of them comes in here.
"""

from __future__ import annotations

import _json  # the C half of json, which itself loads re, enum and collections
import ctypes
import errno
import io
import marshal
import os
import resource
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _KILL_PROCESS, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
# Machine to the kernel's name of its architecture and the numbers of the calls let through, in the same order:
# read write close fstat lseek, mmap mprotect munmap brk mremap madvise, rt_sigaction rt_sigprocmask rt_sigreturn
# sigaltstack restart_syscall, futex sched_yield nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday times
# getrusage, getrandom, getpid getppid gettid getuid geteuid getgid getegid, exit exit_group; x86_64 also has time.
# fmt: off
_CALLS = {
    "x86_64": (0xC000003E, (
        0, 1, 3, 5, 8, 9, 10, 11, 12, 25, 28, 13, 14, 15, 131, 219, 202, 24, 35, 230, 228, 229, 96, 100, 98, 318,
        39, 110, 186, 102, 107, 104, 108, 60, 231, 201)),
    "aarch64": (0xC00000B7, (
        63, 64, 57, 80, 62, 222, 226, 215, 214, 216, 233, 134, 135, 139, 132, 128, 98, 124, 101, 115, 113, 114, 169,
        153, 165, 278, 172, 173, 178, 174, 175, 176, 177, 93, 94)),
}
# fmt: on


class Refused(Exception):
    """Why nothing is run here."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def program(machine: str) -> bytes:
    """The filter of a machine, as the kernel reads it; Refused for a machine whose system calls are not known here."""
    if machine not in _CALLS:
        raise Refused(f"no list of system calls for {machine}, only for {' and '.join(_CALLS)}")
    architecture, allowed = _CALLS[machine]
    lines = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL_PROCESS), (_LOAD, 0, 0, 0)]
    lines += [(_JUMP_EQUAL, len(allowed) - place, 0, number) for place, number in enumerate(allowed)]
    lines += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _limit(limits: dict[str, int]) -> None:
    for name, most in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (most, most))


def _lock_in() -> None:
    """Installs the filter and tries it; Refused where it cannot be installed or does not hold."""
    if sys.platform != "linux":
        raise Refused(f"seccomp is Linux's, this is {sys.platform}")
    code = program(os.uname().machine)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise Refused(f"no_new_privs: {os.strerror(ctypes.get_errno())}")
    filled = _Program(len(code) // 8, code)
    if libc.prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(filled), 0, 0) != 0:
        raise Refused(f"a seccomp filter cannot be installed: {os.strerror(ctypes.get_errno())}")
    for family in (1, 2, 10):  # AF_UNIX, AF_INET, AF_INET6
        if libc.socket(family, 1, 0) != -1 or ctypes.get_errno() != errno.EPERM:
            raise Refused("a socket could still be made behind the filter")
    try:
        os.close(os.open("/", os.O_RDONLY))
    except PermissionError:
        return
    raise Refused("a file could still be opened behind the filter")


def _said(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero`; a candidate's own class may not even be able to say what it is."""
    kind = type(error).__name__
    try:
        words = str(error)
    except BaseException:
        return kind
    return f"{kind}: {words}"[:500] if words else kind


def _refuse_value(value: object) -> object:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _json_of(value: Any) -> str:
    """As json.dumps says it."""
    encode = _json.make_encoder({}, _refuse_value, _json.encode_basestring_ascii, None, ": ", ", ", False, False, True)
    return "".join(encode(value, 0))


def _result(function: Any, arguments: list[Any]) -> str:
    """What one call gave, as JSON: its value, or the error in its place."""
    try:
        return f'{{"value": {_json_of(function(*arguments))}}}'
    except BaseException as error:  # SystemExit too: a candidate's exit is its answer to this call
        return _json_of({"error": _said(error)})


def _run(request: dict[str, Any]) -> str:
    """The outcome, as JSON."""
    name = "__main__" if request["function"] is None else "candidate"
    space: dict[str, Any] = {"__name__": name}
    try:
        exec(compile(request["source"], "<candidate>", "exec"), space)  # noqa: S102  this is what the sandbox is for
    except SystemExit:
        if request["function"] is not None:
            return _json_of({"error": "the candidate exits"})
    except BaseException as error:
        return _json_of({"error": _said(error)})
    if request["function"] is None:
        return '{"results": []}'
    function = space.get(request["function"])
    if not callable(function):
        return _json_of({"error": f"the candidate defines no function {request['function']!r}"})
    return f'{{"results": [{", ".join(_result(function, arguments) for arguments in request["calls"])}]}}'


def main() -> None:
    """Reads the request from stdin; writes two lines of JSON to the descriptor named on the command line."""
    out = int(sys.argv[1])
    request = marshal.loads(sys.stdin.buffer.read())  # our own outer half has written it
    os.close(0)
    sys.stdin = io.StringIO(request["stdin"])
    for name in request["modules"]:
        __import__(name)
    try:
        _limit(request["limits"])
        _lock_in()
    except (Refused, OSError, ValueError) as error:
        os.write(out, _json_of({"refused": str(error)}).encode() + b"\n")
        return
    os.write(out, b'{"ready": true}\n')
    found = _run(request).encode()
    try:
        sys.stdout.flush()
    finally:
        while found:
            found = found[os.write(out, found) :]
        os._exit(0)


if __name__ == "__main__":
    main()
