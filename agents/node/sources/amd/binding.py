"""The one place that knows the `amdsmi` package: finding it, holding it against its library, and calling it.

Calls go to the package's own ctypes layer with structures that are made once, because its dictionaries cost twenty
times as much as the values in them. A binding describes the structures of one family of the library; another family
would write past their end. So the family is checked before the first call that fills one, and the first metrics are
read into a buffer with room to spare, whose far end must stay as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.node.sources.base import SourceError

OK, MORE_DATA = 0, 39
NOT_SUPPORTED, NO_PERMISSION = (2, 3, 49), 10
GONE = frozenset({6, 7, 12, 14, 20, 31, 32, 34, 51, 52})
"""Answers of a device that is not there any more: DRM, I/O and file errors, not found, driver not loaded."""
INIT_GPUS = 2
SHIPPED = "share/amd_smi"
"""Where a ROCm installation keeps the binding that was made for its library."""
ROCM_OF_PACKAGE = {7: 26}
"""The library's major number by that of the packages which are numbered like ROCm itself (7.0.2 is for 26.0.x)."""
SPARE_BYTES, MARK = 4096, 0xA5
_STUB = "trimtab_stub_state"


class CallError(Exception):
    """A call that did not succeed: `status` is the library's code."""

    def __init__(self, call: str, status: int) -> None:
        super().__init__(f"{call} answered {status}")
        self.call, self.status = call, status


def family_of(version: str) -> tuple[int, int] | None:
    """The library family (major, minor) that a binding of this version was made for; None if that cannot be told."""
    numbers = version.split("+")[0].split(".")
    if len(numbers) < 2 or not all(part.isdecimal() for part in numbers[:2]):
        return None
    major, minor = int(numbers[0]), int(numbers[1])
    if major in ROCM_OF_PACKAGE:
        return ROCM_OF_PACKAGE[major], minor
    return (major, minor) if major > max(ROCM_OF_PACKAGE) else None


def _import(folders: Sequence[Path]) -> Any:
    """The package, ROCm's own before any other. Its import prints, and raises KeyError without a library."""
    for folder in folders:
        if (folder / "amdsmi").is_dir() and str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            return importlib.import_module("amdsmi")
    except ModuleNotFoundError as error:
        raise SourceError(
            "the amdsmi package is not installed: pip install '.[gpu]' in a checkout of Trimtab, or install ROCm's "
            "amd-smi-lib"
        ) from error
    except (KeyError, OSError, AttributeError) as error:
        raise SourceError(
            "AMD's library libamd_smi.so is not found or too old: install amd-smi-lib, or set ROCM_PATH to where it is "
            f"({' '.join(said.getvalue().split()) or error!r})"
        ) from error


class Binding:
    """The package and its library, initialised for GPUs. Raises SourceError with what is missing and what to do."""

    def __init__(self, rocm: Path | None = None) -> None:
        root = rocm or Path(os.environ.get("ROCM_HOME") or os.environ.get("ROCM_PATH") or "/opt/rocm")
        package = _import([root / SHIPPED])
        self.wrapper = importlib.import_module("amdsmi.amdsmi_wrapper")
        self.version = str(getattr(package, "__version__", ""))
        status = self.wrapper.amdsmi_init(INIT_GPUS)
        if status != OK:
            raise SourceError(f"AMD's library does not start (status {status}): is the amdgpu driver loaded?")
        self.library_version = self._library_version()
        self._check_family()
        self.stub = hasattr(self._library(), _STUB)

    def _library(self) -> Any:
        return self.wrapper._libraries["libamd_smi.so"]

    def stub_state(self) -> str:
        """Where a stub library keeps the state that it answers from; "" of a real one."""
        if not self.stub:
            return ""
        ask = getattr(self._library(), _STUB)
        ask.restype = ctypes.c_char_p
        return str((ask() or b"").decode())

    def _library_version(self) -> tuple[int, int, int]:
        # its structure ends in a pointer, which the package follows even if it is null
        version = self.wrapper.amdsmi_version_t()
        status = self.wrapper.amdsmi_get_lib_version(ctypes.byref(version))
        return (version.major, version.minor, version.release) if status == OK else (0, 0, 0)

    def _check_family(self) -> None:
        wanted, found = family_of(self.version), self.library_version[:2]
        if wanted != found:
            of = "an unknown family" if wanted is None else f"{wanted[0]}.{wanted[1]}"
            raise SourceError(
                f"the amdsmi package {self.version or 'without a version'} is made for {of} of AMD's library, and "
                f"{found[0]}.{found[1]} is installed: reading through it would overwrite memory. Use the package that "
                f"ROCm installs beside its library ({SHIPPED}), or the release of amdsmi that belongs to it"
            )

    def handles(self) -> list[Any]:
        """A handle a GPU, in the library's order. CallError."""
        wrapper, found = self.wrapper, []
        for socket in self._listed(wrapper.amdsmi_get_socket_handles, wrapper.amdsmi_socket_handle):
            found += self._listed(wrapper.amdsmi_get_processor_handles, wrapper.amdsmi_processor_handle, socket)
        return found

    @staticmethod
    def _listed(ask: Any, kind: Any, *of: Any) -> list[Any]:
        """What the library lists in two calls: how many there are, then which."""
        count = ctypes.c_uint32(0)
        for array in (ctypes.POINTER(kind)(), None):
            held = (kind * count.value)() if array is None else array
            status = ask(*of, ctypes.byref(count), held)
            if status != OK:
                raise CallError(ask.__name__, status)
        return [kind(held[at]) for at in range(count.value)]

    def check_metrics(self, handle: Any) -> None:
        """Reads one GPU's metrics with room to spare; SourceError if the library writes another size than it should."""
        size = ctypes.sizeof(self.wrapper.amdsmi_gpu_metrics_t)
        buffer = (ctypes.c_ubyte * (size + SPARE_BYTES))(*[MARK] * (size + SPARE_BYTES))
        pointer = ctypes.cast(buffer, ctypes.POINTER(self.wrapper.amdsmi_gpu_metrics_t))
        if self.wrapper.amdsmi_get_gpu_metrics_info(handle, pointer) != OK:
            return  # nothing was written; a GPU that answers later is read by the same library
        written = bytes(buffer)
        if any(byte != MARK for byte in written[size:]) or all(byte == MARK for byte in written[size - 16 : size]):
            raise SourceError(
                f"AMD's library {'.'.join(map(str, self.library_version))} fills another structure than the amdsmi "
                f"package {self.version} describes ({size} bytes): use the package that ROCm installs beside it"
            )

    def call(self, name: str, *arguments: Any) -> None:
        """One call; CallError if it does not succeed."""
        status = getattr(self.wrapper, name)(*arguments)
        if status != OK:
            raise CallError(name, status)

    def fill(self, name: str, kind: str, *arguments: Any) -> Any:
        """A structure of the package's, filled by one call whose last argument it is; None if that is not supported."""
        made = getattr(self.wrapper, kind)()
        status = getattr(self.wrapper, name)(*arguments, ctypes.byref(made))
        return made if status == OK else None

    def close(self) -> None:
        """Ends the library's use of the devices."""
        self.wrapper.amdsmi_shut_down()
