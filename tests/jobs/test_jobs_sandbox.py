"""The sandbox: each way out is really tried by a candidate and refused, or ended within its limits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs.contract import ContractError
from jobs.zaya.sandbox import inner as sandboxed
from jobs.zaya.sandbox import outer as sandbox
from jobs.zaya.sandbox.outer import Call, Limits, NotReadyError, Outcome, run_calls, run_program, why_not

SHORT = Limits(cpu_s=1, wall_s=20)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's; elsewhere the sandbox refuses")


def refused(body: str, *modules: str) -> str:
    """Runs a body that must raise PermissionError (or its own kind of it) and gives what was raised."""
    outcome = run_calls(f"def f():\n    {body}", "f", [[]], SHORT, modules)
    assert outcome.ended == "done" and outcome.calls[0].value is None
    return outcome.calls[0].error


def test_values_errors_and_prints_come_back() -> None:
    source = "import math\nprint('defined')\ndef f(x, y=1): return {'root': math.sqrt(x), 'all': [x, y, None, 'é']}"
    outcome = run_calls(source, "f", [[4], [-1], [9, 2.5]])
    assert outcome.ended == "done" and outcome.output == "defined\n"
    assert [call.value for call in outcome.calls] == [
        {"root": 2.0, "all": [4, 1, None, "é"]}, None, {"root": 3.0, "all": [9, 2.5, None, "é"]},
    ]  # fmt: skip
    assert "math domain error" in outcome.calls[1].error
    assert run_program("print(input()[::-1])\nimport sys\nsys.exit(3)", "abc\n") == Outcome("done", output="cba\n")


@pytest.mark.parametrize(
    ("source", "error"),
    [("def f(:", "SyntaxError"), ("g = 1", "no function 'f'"), ("f = 3", "no function"), ("1/0", "ZeroDivisionError"),
     ("raise SystemExit", "exits"), ("import os\nos._exit(0)", "without a result"), ("x = '\ud800'", "no text"),
     ("#" * 70_000, "longer than 65536 bytes")],
)  # fmt: skip
def test_a_source_that_defines_nothing_is_an_error(source: str, error: str) -> None:
    outcome = run_calls(source, "f", [[]])
    assert outcome.ended == "error" and error in outcome.error and outcome.calls == ()


@pytest.mark.parametrize(
    ("source", "value"), [("return {1, 2}", "JSON"), ("return f", "JSON"), ("exit = 1; raise SystemExit", "SystemExit")]
)
def test_what_is_no_json_is_an_error_of_its_call(source: str, value: str) -> None:
    outcome = run_calls(f"def f(): {source}", "f", [[]])
    assert outcome.ended == "done" and value in outcome.calls[0].error


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX"])
def test_no_socket_of_any_family(family: str) -> None:
    assert "PermissionError" in refused(f"import socket; socket.socket(socket.{family})", "socket")
    assert "PermissionError" in refused("import socket; socket.socketpair()", "socket")


def test_no_socket_by_its_number_either() -> None:
    body = (
        "import ctypes; lib = ctypes.CDLL(None, use_errno=True); return [lib.syscall(41, 2, 1, 0), ctypes.get_errno()]"
    )
    outcome = run_calls(f"def f(): {body}", "f", [[]], SHORT)
    if os.uname().machine == "x86_64":  # 41 is its `socket`
        assert outcome.calls == (Call([-1, 1]),)


def test_a_server_that_listens_is_never_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        names = ("socket", "encodings.idna")
        port = server.getsockname()[1]
        assert "PermissionError" in refused(f"import socket; socket.create_connection(('127.0.0.1', {port}))", *names)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_nothing_is_written_read_or_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("secret")
    for body in (
        f"open({str(kept)!r})", f"open({str(kept)!r}, 'w')", f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import os; os.remove({str(kept)!r})", f"import os; os.rename({str(kept)!r}, 'x')",
        "import os; os.listdir('/')",
        f"import os; os.mkdir({str(tmp_path / 'd')!r})", f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.stat({str(kept)!r})", f"import os; os.chmod({str(kept)!r}, 0)",
        "import os; os.memfd_create('m')",
    ):  # fmt: skip
        assert "PermissionError" in refused(body), body
    assert kept.read_text() == "secret" and list(tmp_path.iterdir()) == [kept]


def test_no_secret_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_SECRET", "hunter2")
    outcome = run_calls("import os\ndef f(): return sorted(os.environ)", "f", [[]])
    assert set(outcome.calls[0].value) <= {"LD_LIBRARY_PATH", "PYTHONHASHSEED", "PYTHONUTF8", "LC_CTYPE"}
    for path in ("/proc/self/environ", f"/proc/{os.getpid()}/environ"):
        assert "PermissionError" in refused(f"open({path!r})")


def test_no_process_no_thread_no_signal() -> None:
    assert "PermissionError" in refused("import os\n    while True: os.fork()")
    assert "PermissionError" in refused("import os; os.execv('/bin/sh', ['sh'])")
    assert "PermissionError" in refused("import subprocess; subprocess.run(['true'])", "subprocess")
    assert "start new thread" in refused("import threading; threading.Thread(target=f).start()", "threading")
    assert "PermissionError" in refused("import os; os.kill(os.getppid(), 9)")
    assert (
        "ValueError" in refused("import resource; resource.setrlimit(resource.RLIMIT_CPU, (9, 9))", "resource")
        or os.geteuid()
    )
    assert "ModuleNotFoundError" in refused("import threading")


@pytest.mark.parametrize(
    ("source", "ended"),
    [("while True: pass", "cpu"), ("import time\ntime.sleep(999)", "wall"), ("while True: print('x' * 1000)", "output"),
     ("import os\nos.closerange(0, 99)\nimport time\ntime.sleep(999)", "wall"), ("x = bytearray(1 << 40)", "error"),
     ("x = []\nwhile True: x.append(bytearray(1 << 20))", "error"), ("import ctypes\nctypes.string_at(0)", "killed"),
     ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "cpu")],
)  # fmt: skip
def test_a_bomb_is_ended_within_its_limits(source: str, ended: str) -> None:
    outcome = run_program(source, limits=Limits(cpu_s=1, wall_s=1 if ended == "wall" else 20), extra=("signal",))
    assert outcome.ended == ended, outcome
    assert len(outcome.output) <= Limits().output_bytes and (ended != "error" or "MemoryError" in outcome.error)


def test_a_result_is_capped_and_a_forged_one_is_only_data() -> None:
    assert run_calls("def f(): return 'x' * (1 << 21)", "f", [[]]).ended == "output"
    forged = "import os\nfor n in range(3, 64):\n    try: os.write(n, b'{}')\n    except OSError: pass\nos._exit(0)"
    for said in ({"refused": "no"}, {"results": 3}, [1], {"results": [{"error": [1]}]}):
        outcome = run_calls(forged.format(json.dumps(said)), "f", [[]])
        assert outcome.ended in ("error", "done") and all(call.value is None for call in outcome.calls)


def test_where_it_cannot_lock_itself_in_it_refuses_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why_not() == ""
    text = Path(sandboxed.__file__).read_text()
    for name, before, after, why in (
        ("machine", "os.uname().machine", "'vax'", "no list of system calls for vax"),
        (
            "open",
            "0x00050000 | errno.EPERM",
            "0x00050000 | errno.EACCES",
            "socket could still",
        ),
        ("absent", "_SET_SECCOMP, _FILTER = 38, 22, 2", "_SET_SECCOMP, _FILTER = 38, 22, 99", "cannot be installed"),
    ):
        assert before in text
        inner = tmp_path / f"{name}.py"
        inner.write_text(text.replace(before, after))
        monkeypatch.setattr(sandbox, "_INNER", inner)
        mark = "print('ran')"
        with pytest.raises(ContractError, match=f"runs nothing here: .*{why}"):
            run_program(mark)
        assert why in why_not()


def test_the_clock_is_the_candidates_and_a_death_before_it_runs_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path(sandboxed.__file__).read_text()
    begin = 'if __name__ == "__main__":\n'
    monkeypatch.setattr(sandbox, "_INNER", tmp_path / "inner.py")
    sandbox._INNER.write_text(text.replace(begin, f"{begin}    import time; time.sleep(1.2)\n"))
    assert run_program("print('ran')", limits=Limits(wall_s=1)).output == "ran\n"
    mark = tmp_path / "died"
    dies = (
        f"    if not os.path.exists({str(mark)!r}):\n        os.mkdir({str(mark)!r})\n        os.kill(os.getpid(), 9)\n"
    )
    sandbox._INNER.write_text(text.replace(begin, begin + dies))
    assert run_program("print('ran')").output == "ran\n" and mark.exists()
    sandbox._INNER.write_text(text.replace(begin, f"{begin}    os.kill(os.getpid(), 9)\n"))
    with pytest.raises(NotReadyError, match="ended with -9 before it was ready"):
        run_program("print('ran')")
    assert "before it was ready" in why_not()
    monkeypatch.setattr(sandbox, "STARTUP_S", 0.05)
    sandbox._INNER.write_text(text.replace(begin, f"{begin}    import time; time.sleep(99)\n"))
    with pytest.raises(NotReadyError, match="not ready within"):
        run_program("print('ran')")


def test_it_works_in_a_thread_and_leaves_no_process() -> None:
    found: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda: found.append(run_calls("def f(): return 7", "f", [[]]))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.calls for one in found] == [(Call(7),)] * 4
    children = subprocess.run(["ps", "-o", "args", "--ppid", str(os.getpid())], capture_output=True, text=True)
    assert "inner.py" not in children.stdout


def test_limits_are_checked() -> None:
    for wrong in ({"cpu_s": 0}, {"wall_s": -1.0}, {"memory_bytes": 1000}, {"output_bytes": 0}):
        with pytest.raises(ContractError, match="above 0"):
            Limits(**wrong)  # type: ignore[arg-type]  # wrong on purpose
