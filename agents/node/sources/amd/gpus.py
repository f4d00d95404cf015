"""All GPUs of a node through AMD's library: one worker a GPU with a deadline, so that one that hangs holds up none.

A worker that is still at a call is left alone: its row is unknown but for how long it has been waiting, which is a
signal of its own. Identity is read once.
"""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from agents.node.sources.amd.binding import Binding, CallError
from agents.node.sources.amd.reader import GpuReader
from agents.node.sources.base import SourceError
from agents.readings import GPU_INDEX, GPU_METRICS, UNKNOWN, GpuFacts, KernelLine

DEADLINE_S, FACTS_DEADLINE_S = 0.5, 5.0
HOTSPOT, MEMORY, CRITICAL = 1, 2, 5
_FIRMWARE = ("SMU", "PSP_SOSDRV", "CP_MEC1", "RLC", "SDMA0", "TA_RAS", "TA_XGMI", "PLDM_BUNDLE")


@dataclass(frozen=True, slots=True)
class Identity:
    """What is read once: of a GPU, and what all GPUs of the node share."""

    gpu: GpuFacts
    model: str
    driver: str
    firmware: str
    vbios: str
    kfd_id: int


class _Worker:
    """One thread for one GPU. It does one thing at a time; `since_s` says since when, None while it waits for work."""

    def __init__(self, name: str) -> None:
        self.since_s: float | None = None
        """by whatever clock its owner has"""
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[tuple[int, Any]], int] | None] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def ask(self, work: Callable[[], Any], done: queue.SimpleQueue[tuple[int, Any]], number: int, now_s: float) -> None:
        """Begins `work`; its result, or the exception, is put into `done` with the number."""
        self.since_s = now_s
        self._work.put((work, done, number))

    def end(self) -> None:
        """Its thread ends after what it does now."""
        self._work.put(None)

    def _run(self) -> None:
        while (asked := self._work.get()) is not None:
            work, done, number = asked
            result: Any
            try:
                result = work()
            except Exception as error:  # whatever a call does, its worker lives on
                result = error
            self.since_s = None
            done.put((number, result))


class AmdGpus:
    """The GPUs of this node. `marks` are the readers' cursors of an earlier agent on the same boot, by address; `clock`
    tells how long a call has been waiting."""

    def __init__(self, binding: Binding, marks: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self.binding, self._clock = binding, clock
        try:
            handles = binding.handles()
        except CallError as error:
            raise SourceError(f"AMD's library lists no GPU ({error}): is the amdgpu driver loaded?") from error
        if not handles:
            raise SourceError("AMD's library finds no GPU on this machine")
        self._workers = [_Worker(f"gpu{at}") for at in range(len(handles))]
        self._call(lambda at: binding.check_metrics(handles[at]) if at == 0 else None, FACTS_DEADLINE_S)
        named = self._call(lambda at: _identity(binding, handles[at], at), FACTS_DEADLINE_S)
        self.identities = [one if isinstance(one, Identity) else _nameless(at) for at, one in enumerate(named)]
        self.readers = [
            GpuReader(binding, handle, one.gpu.index, one.gpu.pci_address)
            for handle, one in zip(handles, self.identities, strict=True)
        ]
        for reader in self.readers:
            reader.cursor, reader.fresh = marks.get(reader.address, 0), reader.address not in marks
        self._broken: dict[int, str] = {}
        self._sampled_s = 0.0

    @property
    def blind(self) -> str:
        """What of the GPUs cannot be read; "" while all of it can."""
        broken = (f"GPU {at} cannot be read: {why}" for at, why in self._broken.items())
        said = (reader.blind(self._sampled_s) for reader in self.readers)
        return next((one for one in (*broken, *said) if one), "")

    def close(self) -> None:
        """Ends the workers; one in a call that hangs stays until that comes back."""
        for worker in self._workers:
            worker.end()

    def marks(self) -> dict[str, int]:
        """How far each GPU's error log has been read."""
        return {one.address: one.cursor for one in self.readers if one.address and not one.fresh}

    def errors(self) -> dict[tuple[int, int], int]:
        """How often a read of each GPU failed, by the library's status."""
        return {(reader.index, status): n for reader in self.readers for status, n in list(reader.errors.items())}

    def sample(self, at_s: float, monotonic_s: float) -> tuple[tuple[int, ...], ...]:
        """A row a GPU, within the deadline; what does not answer by then is unknown."""

        def read(at: int) -> tuple[int, ...]:
            row = self.readers[at].read(monotonic_s)
            self.readers[at].read_records(monotonic_s, at_s)
            return row

        self._sampled_s = monotonic_s
        rows = []
        for at, result in enumerate(self._call(read, DEADLINE_S)):
            self._broken.pop(at, None)
            if isinstance(result, Exception):
                self._broken[at] = repr(result)
            rows.append(result if isinstance(result, tuple) else self._waiting(at))
        return tuple(rows)

    def take_lines(self) -> list[KernelLine]:
        """The records that came with the samples since the last call."""
        return [reader.lines.get() for reader in self.readers for _ in range(reader.lines.qsize())]

    def _waiting(self, at: int) -> tuple[int, ...]:
        row = [UNKNOWN] * len(GPU_METRICS)
        since_s = self._workers[at].since_s
        if since_s is not None:
            row[GPU_INDEX["read_ms"]] = round((self._clock() - since_s) * 1000)
        return tuple(row)

    def _call(self, work: Callable[[int], Any], deadline_s: float) -> list[Any]:
        """The result of each worker, or what it raised; None where it is not there in time. SourceError is raised."""
        done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        results: list[Any] = [None] * len(self._workers)
        asked = 0
        for at, worker in enumerate(self._workers):
            if worker.since_s is None:
                worker.ask(partial(work, at), done, at, self._clock())
                asked += 1
        until = time.monotonic() + deadline_s
        for _ in range(asked):
            try:
                at, result = done.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if isinstance(result, SourceError):
                raise result
            results[at] = result
        return results


def _text(value: Any) -> str:
    return bytes(value).split(b"\0")[0].decode(errors="replace").strip() if value is not None else ""


def _identity(binding: Binding, handle: Any, index: int) -> Identity:
    """Everything about a GPU that does not change; "" and 0 for what it does not say."""
    fill = binding.fill
    asic = fill("amdsmi_get_gpu_asic_info", "amdsmi_asic_info_t", handle)
    board = fill("amdsmi_get_gpu_board_info", "amdsmi_board_info_t", handle)
    driver = fill("amdsmi_get_gpu_driver_info", "amdsmi_driver_info_t", handle)
    vbios = fill("amdsmi_get_gpu_vbios_info", "amdsmi_vbios_info_t", handle)
    kfd = fill("amdsmi_get_gpu_kfd_info", "amdsmi_kfd_info_t", handle)
    cap = fill("amdsmi_get_power_cap_info", "amdsmi_power_cap_info_t", handle, 0)
    address = _address(binding, handle)
    serial = _text(asic.asic_serial) if asic else ""
    parts = [_partition(binding, handle, name) for name in ("compute", "memory")]
    facts = GpuFacts(
        index=index,
        serial=serial or (_text(board.product_serial) if board else "") or address or f"gpu{index}",
        uuid=_uuid(binding, handle),
        pci_address=address,
        vram_total_mib=_vram(binding, handle),
        partition="/".join(part for part in parts if part),
        power_cap_w=int(cap.power_cap) // 1_000_000 if cap else 0,
        hotspot_limit_c=_limit(binding, handle, HOTSPOT),
        hbm_limit_c=_limit(binding, handle, MEMORY),
    )
    return Identity(
        gpu=facts,
        model=_text(asic.market_name) if asic else "",
        driver=_text(driver.driver_version) if driver else "",
        firmware=_firmware(binding, handle),
        vbios=(_text(vbios.part_number) or _text(vbios.version)) if vbios else "",
        kfd_id=int(kfd.kfd_id) if kfd else 0,
    )


def _nameless(index: int) -> Identity:
    return Identity(GpuFacts(index, f"gpu{index}", "", "", 0, ""), "", "", "", "", 0)


def _address(binding: Binding, handle: Any) -> str:
    """domain:bus:device.function. Where /dev/dri cannot be opened the library knows it from the kernel's files alone,
    as one number: domain from bit 32, bus from 8, device from 3."""
    found = binding.fill("amdsmi_get_gpu_device_bdf", "amdsmi_bdf_t", handle)
    if found is not None:
        one = found.struct_amdsmi_bdf_t
        return f"{one.domain_number:04x}:{one.bus_number:02x}:{one.device_number:02x}.{one.function_number}"
    number = ctypes.c_uint64()
    if binding.wrapper.amdsmi_get_gpu_bdf_id(handle, ctypes.byref(number)) != 0:
        return ""
    place = number.value
    return f"{place >> 32:04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}"


def _uuid(binding: Binding, handle: Any) -> str:
    length, buffer = ctypes.c_uint32(38), ctypes.create_string_buffer(38)
    status = binding.wrapper.amdsmi_get_gpu_device_uuid(handle, ctypes.byref(length), buffer)
    return _text(buffer.raw) if status == 0 else ""


def _partition(binding: Binding, handle: Any, kind: str) -> str:
    buffer = ctypes.create_string_buffer(256)
    status = getattr(binding.wrapper, f"amdsmi_get_gpu_{kind}_partition")(handle, buffer, 256)
    return _text(buffer.raw) if status == 0 else ""


def _vram(binding: Binding, handle: Any) -> int:
    total = ctypes.c_uint64()
    status = binding.wrapper.amdsmi_get_gpu_memory_total(handle, 0, ctypes.byref(total))
    return int(total.value) >> 20 if status == 0 else 0


def _limit(binding: Binding, handle: Any, sensor: int) -> int:
    """A temperature limit in °C; the library may answer in thousandths."""
    found = ctypes.c_int64()
    status = binding.wrapper.amdsmi_get_temp_metric(handle, sensor, CRITICAL, ctypes.byref(found))
    value = int(found.value) if status == 0 else 0
    return value // 1000 if value > 1000 else value


def _firmware(binding: Binding, handle: Any) -> str:
    """The versions that matter to training, in one line; a comparison of nodes needs no more."""
    info = binding.fill("amdsmi_get_fw_info", "amdsmi_fw_info_t", handle)
    if info is None:
        return ""
    listed = [info.fw_info_list[at] for at in range(min(info.num_fw_info, len(info.fw_info_list)))]
    versions = {int(one.fw_id): int(one.fw_version) for one in listed}
    blocks = {name: getattr(binding.wrapper, f"AMDSMI_FW_ID_{name}", -1) for name in _FIRMWARE}
    return ", ".join(f"{name} {versions[block]:x}" for name, block in blocks.items() if block in versions)
