"""Reads one MI300X: a row of GPU_METRICS a second from as few calls as there are, and the records of its error log.

What was seen on this device decides what is read: the average power and the edge temperature are not available, every
array slot has its own sentinel, one XGMI slot is the device itself, links that are all down are links of which nothing
is known, and the threshold of bad pages may be missing. Counts of errors come a block at a time; blocks that the device
does not have are asked for once.
"""

from __future__ import annotations

import ctypes
import queue
import time
from collections.abc import Sequence
from typing import Any

from agents.node.sources.amd.binding import GONE, MORE_DATA, NO_PERMISSION, NOT_SUPPORTED, OK, Binding
from agents.readings import GPU_INDEX, GPU_METRICS, UNKNOWN, KernelLine

U16, U32, U64 = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
MEMORY_EVERY_S, PAGES_EVERY_S, RECORDS_EVERY_S, RECORDS_AGAIN_S = 5.0, 60.0, 2.0, 60.0
THRESHOLD = 128
"""Bad pages at which a card must be replaced, where it does not say."""
RECORD_BYTES, RECORDS, AFIDS = 64 << 10, 20, 12
ALL_SEVERITIES = 0x7
LINK_UP = 1
VAGUE_S = 10.0
"""How long answers may be without values before that is told."""
NO_BLOCK_HERE = (1, *NOT_SUPPORTED, 40)
"""Answers about a block that the device does not have: invalid, not supported, no data."""
_MIB = 1 << 20
_AT = GPU_INDEX
_EMPTY = [UNKNOWN] * len(GPU_METRICS)
BLOCK_PREFIX = "AMDSMI_GPU_BLOCK_"
NO_BLOCK = ("INVALID", "FIRST", "LAST", "RESERVED")


def known(value: int, sentinel: int) -> int:
    """The value, or UNKNOWN for the library's "not available"."""
    return UNKNOWN if value == sentinel else int(value)


def share(value: int) -> int:
    """A percentage, or UNKNOWN: the library's sentinel, like anything else above 100, is none."""
    return int(value) if value <= 100 else UNKNOWN


def mean(values: Sequence[int], sentinel: int) -> int:
    """The mean of what is available."""
    found = [value for value in values if value != sentinel]
    return round(sum(found) / len(found)) if found else UNKNOWN


class GpuReader:
    """One GPU. `read` and `read_records` are called by one thread; they may hang, and whoever waits must not."""

    def __init__(self, binding: Binding, handle: Any, index: int, address: str) -> None:
        self.binding, self.handle, self.index, self.address = binding, handle, index, address
        wrapper = binding.wrapper
        self._metrics = wrapper.amdsmi_gpu_metrics_t()
        self._metrics_ref = ctypes.byref(self._metrics)
        self._errors = wrapper.amdsmi_error_count_t()
        self._errors_ref = ctypes.byref(self._errors)
        self._ask_metrics, self._ask_errors = wrapper.amdsmi_get_gpu_metrics_info, wrapper.amdsmi_get_gpu_ecc_count
        self._blocks: dict[str, list[int]] | None = None
        self._slow: dict[str, int] = {}
        self._due = dict.fromkeys(("memory", "pages", "records"), 0.0)
        self.cursor = 0
        """how many records of the error log have been read"""
        self._log_blind = ""
        self._vague: tuple[float, int] | None = None
        """since when, and with which status, it has answered without a value and without saying that it is gone"""
        self.fresh = True
        """whether no record was ever read here: what the log holds then is old news"""
        self.lines: queue.SimpleQueue[KernelLine] = queue.SimpleQueue()
        """records as they come; a read that is late loses none"""
        self._ever_up = 0
        self._told: tuple[set[int], set[int]] = set(), set()
        """slots of links whose state, and whose traffic, was ever known"""
        self.errors: dict[int, int] = {}
        """how often each status came, but success"""

    def blind(self, now_s: float) -> str:
        """What cannot be read of it, its values or its error log; "" while both can."""
        if self._vague is not None and now_s - self._vague[0] >= VAGUE_S:
            return f"GPU {self.index} answers status {self._vague[1]} instead of values"
        return self._log_blind

    def read(self, now_s: float) -> tuple[int, ...]:
        """A row; `present` is 0 of a device that says it is gone, UNKNOWN where nothing can be told."""
        begun = time.monotonic()
        row = list(_EMPTY)
        status = self._ask_metrics(self.handle, self._metrics_ref)
        if status != OK:
            self.errors[status] = self.errors.get(status, 0) + 1
            row[_AT["present"]] = 0 if status in GONE else UNKNOWN
            since_s = now_s if self._vague is None else self._vague[0]
            self._vague = None if status in GONE else (since_s, status)
        else:
            row[_AT["present"]] = 1
            self._vague = None
            self._from_metrics(row)
            self._from_errors(row)
            self._from_slow(row, now_s)
        row[_AT["read_ms"]] = round((time.monotonic() - begun) * 1000)
        return tuple(row)

    def _from_metrics(self, row: list[int]) -> None:
        m = self._metrics
        row[_AT["power_w"]] = known(m.current_socket_power, U16)
        row[_AT["energy_j"]] = known(m.energy_accumulator, U64)
        row[_AT["temperature_hotspot_c"]] = known(m.temperature_hotspot, U16)
        row[_AT["temperature_hbm_c"]] = known(m.temperature_mem, U16)
        row[_AT["temperature_vr_c"]] = known(m.temperature_vrsoc, U16)
        busy = share(m.average_gfx_activity)
        row[_AT["gfx_activity_percent"]] = self._busy() if busy == UNKNOWN else busy
        row[_AT["umc_activity_percent"]] = share(m.average_umc_activity)
        row[_AT["gfx_clock_mhz"]] = mean(m.current_gfxclks[:], U16)
        row[_AT["umc_clock_mhz"]] = known(m.current_uclk, U16)
        row[_AT["throttle_ppt_ticks"]] = known(m.ppt_residency_acc, U64)
        row[_AT["throttle_prochot_ticks"]] = known(m.prochot_residency_acc, U64)
        row[_AT["throttle_thermal_ticks"]] = known(m.socket_thm_residency_acc, U64)
        row[_AT["throttle_vr_ticks"]] = known(m.vr_thm_residency_acc, U64)
        row[_AT["throttle_hbm_ticks"]] = known(m.hbm_thm_residency_acc, U64)
        row[_AT["accumulation_ticks"]] = known(m.accumulation_counter, U64)
        row[_AT["pcie_width_lanes"]] = known(m.pcie_link_width, U16)
        row[_AT["pcie_speed_gtps"]] = known(m.pcie_link_speed, U16)
        row[_AT["pcie_replay_total"]] = known(m.pcie_replay_count_acc, U64)
        row[_AT["pcie_nak_sent_total"]] = known(m.pcie_nak_sent_count_acc, U32)
        row[_AT["pcie_nak_received_total"]] = known(m.pcie_nak_rcvd_count_acc, U32)
        row[_AT["pcie_recovery_total"]] = known(m.pcie_l0_to_recov_count_acc, U64)
        self._links(row)

    def _busy(self) -> int:
        """Activity of the accelerator dies, where the average over them is not available."""
        inst = [value for value in self._metrics.xcp_stats[0].gfx_busy_inst[:] if value <= 100]
        return round(sum(inst) / len(inst)) if inst else UNKNOWN

    def _links(self, row: list[int]) -> None:
        """State and traffic by slot; the sums only while no slot is silent that has spoken before."""
        m, (states, moving) = self._metrics, self._told
        read, written, status = m.xgmi_read_data_acc[:], m.xgmi_write_data_acc[:], m.xgmi_link_status[:]
        mask = sum(1 << peer for peer, state in enumerate(status) if state == LINK_UP)
        states |= {peer for peer, state in enumerate(status) if state != U16}
        self._ever_up |= mask
        moved: dict[int, tuple[int, int]] = {}
        for peer, (inward, outward) in enumerate(zip(read, written, strict=True)):
            if U64 in (inward, outward) or not (self._ever_up or ~(1 << self.index)) >> peer & 1:
                continue  # not available, or a slot without a link, as the device's own
            row[_AT[f"xgmi_link_{peer}_kb"]] = inward + outward
            moved[peer] = inward, outward
        moving |= moved.keys()
        if moving == moved.keys():
            row[_AT["xgmi_read_kb"]] = sum(inward for inward, _ in moved.values())
            row[_AT["xgmi_write_kb"]] = sum(outward for _, outward in moved.values())
        if mask and all(status[peer] != U16 for peer in states):  # all down means that nobody knows
            row[_AT["xgmi_up_mask"]], row[_AT["xgmi_links_up"]] = mask, mask.bit_count()

    # --- errors ------------------------------------------------------------------------------------------------------

    def _known_blocks(self) -> dict[str, list[int]]:
        """The device's blocks that count errors, asked once: of memory, of XGMI, of all others."""
        if self._blocks is None:
            wrapper = self.binding.wrapper
            found: dict[str, list[int]] = {"hbm": [], "xgmi": [], "other": []}
            settled = True
            # by the constants' names: the package's own table has lost those that share a number
            for name in [one for one in dir(wrapper) if one.startswith(BLOCK_PREFIX)]:
                short, block = name.removeprefix(BLOCK_PREFIX), getattr(wrapper, name)
                if short in NO_BLOCK:
                    continue
                status = self._ask_errors(self.handle, block, self._errors_ref)
                if status == OK:
                    found[{"UMC": "hbm", "XGMI_WAFL": "xgmi"}.get(short, "other")].append(block)
                settled = settled and (status == OK or status in NO_BLOCK_HERE)
            if not settled:
                return found  # asked again with the next sample
            self._blocks = found
        return self._blocks

    def _from_errors(self, row: list[int]) -> None:
        for kind, blocks in self._known_blocks().items():
            correctable = uncorrectable = deferred = 0
            for block in blocks:
                status = self._ask_errors(self.handle, block, self._errors_ref)
                if status != OK:
                    self.errors[status] = self.errors.get(status, 0) + 1
                    break
                correctable += self._errors.correctable_count
                uncorrectable += self._errors.uncorrectable_count
                deferred += self._errors.deferred_count
            else:
                if not blocks:
                    continue
                row[_AT[f"ecc_{kind}_correctable_total"]] = correctable
                row[_AT[f"ecc_{kind}_uncorrectable_total"]] = uncorrectable
                if kind != "xgmi":
                    row[_AT[f"ecc_{kind}_deferred_total"]] = deferred

    # --- what changes slowly -----------------------------------------------------------------------------------------

    def _from_slow(self, row: list[int], now_s: float) -> None:
        if now_s >= self._due["memory"]:
            self._due["memory"] = now_s + MEMORY_EVERY_S
            self._slow["vram_used_mib"] = self._number("amdsmi_get_gpu_memory_usage", ctypes.c_uint64(), 0, _MIB)
            if self._slow.get("vram_total_mib", UNKNOWN) == UNKNOWN:
                self._slow["vram_total_mib"] = self._number("amdsmi_get_gpu_memory_total", ctypes.c_uint64(), 0, _MIB)
        if now_s >= self._due["pages"]:
            self._due["pages"] = now_s + PAGES_EVERY_S
            self._slow["bad_pages_total"] = self._pages()
            threshold = self._number("amdsmi_get_gpu_bad_page_threshold", ctypes.c_uint32(), None, 1)
            self._slow["bad_page_threshold"] = threshold if threshold > 0 else THRESHOLD
        for name, value in self._slow.items():
            row[_AT[name]] = value

    def _number(self, name: str, into: Any, key: int | None, divisor: int) -> int:
        ask = getattr(self.binding.wrapper, name)
        keys = () if key is None else (key,)
        return int(into.value) // divisor if ask(self.handle, *keys, ctypes.byref(into)) == OK else UNKNOWN

    def _pages(self) -> int:
        count = ctypes.c_uint32(0)
        nothing = ctypes.POINTER(self.binding.wrapper.amdsmi_retired_page_record_t)()
        status = self.binding.wrapper.amdsmi_get_gpu_bad_page_info(self.handle, ctypes.byref(count), nothing)
        return int(count.value) if status == OK else UNKNOWN

    # --- the error log -----------------------------------------------------------------------------------------------

    def read_records(self, now_s: float, at_s: float) -> None:
        """New records of the device's error log into `lines`, one an AMD field identifier."""
        if now_s < self._due["records"]:
            return
        more = True
        while more:
            found, more = self._next_records()
            for body in found or ():
                for afid in () if self.fresh else self._afids(body):
                    text = f"CPER of {self.address}: AFID {afid}"
                    self.lines.put(KernelLine(at_s, 3, text, self.address, f"afid-{afid}"))
        self.fresh = self.fresh and found is None
        self._due["records"] = now_s + (RECORDS_AGAIN_S if found is None else RECORDS_EVERY_S)

    def _next_records(self) -> tuple[list[bytes] | None, bool]:
        """Raw records behind the cursor, None if they cannot be read, and whether there are more."""
        wrapper = self.binding.wrapper
        buffer = ctypes.create_string_buffer(RECORD_BYTES)
        size, count = ctypes.c_uint64(RECORD_BYTES), ctypes.c_uint64(RECORDS)
        cursor = ctypes.c_uint64(self.cursor)
        header = ctypes.POINTER(wrapper.amdsmi_cper_hdr_t)
        headers = ctypes.cast((header * RECORDS)(), ctypes.POINTER(header))
        status = wrapper.amdsmi_get_gpu_cper_entries(
            *(self.handle, ALL_SEVERITIES, buffer, ctypes.byref(size), headers),
            *(ctypes.byref(count), ctypes.byref(cursor)),
        )
        if status not in (OK, MORE_DATA):
            why = "they need read access to debugfs (CAP_SYS_ADMIN or a mount of it)"
            said = "" if status == NO_PERMISSION else f" (status {status})"
            self._log_blind = f"the GPUs' error records cannot be read{said}: {why}"
            return None, False
        self._log_blind = ""
        found, at = [], 0
        for _ in range(min(count.value, RECORDS)):
            length = ctypes.cast(ctypes.addressof(buffer) + at, header).contents.record_length
            if not 0 < length <= size.value - at:
                break
            found.append(buffer.raw[at : at + length])
            at += length
        moved = cursor.value != self.cursor
        self.cursor = int(cursor.value)
        return found, status == MORE_DATA and moved

    def _afids(self, body: bytes) -> list[int]:
        wrapper = self.binding.wrapper
        held = ctypes.create_string_buffer(body, len(body))
        numbers, count = (ctypes.c_uint64 * AFIDS)(), ctypes.c_uint32(AFIDS)
        start = ctypes.cast(held, ctypes.POINTER(ctypes.c_char))
        status = wrapper.amdsmi_get_afids_from_cper(start, len(body), numbers, ctypes.byref(count))
        return [int(numbers[at]) for at in range(min(count.value, AFIDS))] if status == OK else []
