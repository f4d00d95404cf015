"""Builds a stand-in for AMD's library: the symbols that the installed binding wants, compiled here, when it is needed.

The real `amdsmi` package then runs on a machine without a GPU, over values that somebody else writes (state.py).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("library.c")
_SYMBOL = re.compile(r"_libraries\['libamd_smi\.so'\]\.(\w+)")
_SERVED = re.compile(r"^(?:int|void|const char \*) ?(\w+)\(|^(?:FILLS|KEYED|TWICE|TEXT|LISTS)\((\w+)\)", re.MULTILINE)


class StubError(Exception):
    """The stand-in cannot be built; the message says what is missing."""


def wanted(package: Path) -> list[str]:
    """Every symbol that the binding in `package` (the folder amdsmi) binds when it is imported."""
    wrapper = package / "amdsmi_wrapper.py"
    try:
        return sorted(set(_SYMBOL.findall(wrapper.read_text(encoding="utf-8"))))
    except OSError as error:
        raise StubError(f"no amdsmi package in {package.parent}: {error}") from error


def source(symbols: list[str]) -> str:
    """The C text, with a body that answers NOT_SUPPORTED for what it does not serve."""
    text = SOURCE.read_text(encoding="utf-8")
    served = {one or other for one, other in _SERVED.findall(text)}
    empty = "\n".join(f"int {name}(void) {{ return NOT_SUPPORTED; }}" for name in symbols if name not in served)
    head, marker, tail = text.rpartition("@EMPTY@")
    return head + empty + tail if marker else text


def build(package: Path, cache: Path) -> Path:
    """A folder to be ROCM_PATH, with lib/libamd_smi.so for the binding in `package`; built once for each text."""
    text = source(wanted(package))
    root = cache / f"rocm-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    library = root / "lib" / "libamd_smi.so"
    if library.exists():
        return root
    compiler = os.environ.get("CC") or next((one for one in ("cc", "gcc", "clang") if shutil.which(one)), None)
    if compiler is None:
        raise StubError("a C compiler is needed to build the stand-in for AMD's library: apt-get install gcc")
    library.parent.mkdir(parents=True, exist_ok=True)
    made = library.with_suffix(f".{os.getpid()}")
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-x", "c", "-", "-o", str(made), "-lpthread"]
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    if done.returncode:
        raise StubError(f"the stand-in for AMD's library does not compile: {done.stderr[-2000:]}")
    made.replace(library)
    return root
