"""Writes what the stand-in library answers: one record a call, its bytes made with the binding's own structures."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.readings import GPU_INDEX, UNKNOWN, GpuFacts

_RECORD = struct.Struct("<64siiQQIIII")
_HEAD = struct.Struct("<8sII")
FOR_EVER = 0xFFFFFFFF
NOT_FOUND, NOT_SUPPORTED = 31, 2
BLOCKS = {"hbm": "UMC", "xgmi": "XGMI_WAFL", "other": "GFX"}
"""Which block of the device a counter of ours is written to; SDMA and MMHUB are there too, without errors."""
QUIET_BLOCKS = ("SDMA", "MMHUB", "PCIE_BIF", "HDP")
SENTINEL = {ctypes.c_uint16: 0xFFFF, ctypes.c_uint32: 0xFFFFFFFF, ctypes.c_uint64: 0xFFFFFFFFFFFFFFFF}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call answers for one GPU (-1: any)."""

    name: str
    gpu: int = -1
    key: int = 0
    key2: int = 0
    status: int = 0
    delay_ms: int = 0
    count: int = 0
    body: bytes = b""

    def packed(self) -> bytes:
        head = _RECORD.pack(
            *(self.name.encode(), self.gpu, self.status, self.key, self.key2),
            *(self.delay_ms, self.count, len(self.body), 0),
        )
        return head + self.body + b"\0" * (-len(self.body) % 8)


@dataclass
class State:
    """All answers of one library; `write` swaps them in under a live agent."""

    path: Path
    answers: dict[tuple[str, int, int, int], Answer] = field(default_factory=dict)

    def put(self, answer: Answer) -> None:
        """Replaces what a call answers."""
        self.answers[answer.name, answer.gpu, answer.key, answer.key2] = answer

    def write(self) -> None:
        """The file, whole or not at all."""
        body = b"".join(answer.packed() for answer in self.answers.values())
        made = self.path.with_suffix(".new")
        made.write_bytes(_HEAD.pack(b"TTSTUB1\n", len(self.answers), 0) + body)
        made.replace(self.path)


def blank(kind: Any) -> Any:
    """A structure in which every number is the library's "not available"."""
    made = kind()
    ctypes.memset(ctypes.byref(made), 0xFF, ctypes.sizeof(made))
    return made


def metrics(wrapper: Any, row: tuple[int, ...], number: int, gpus: int) -> bytes:
    """A row of GPU_METRICS as the library's structure; UNKNOWN becomes the sentinel of its field."""
    made = blank(wrapper.amdsmi_gpu_metrics_t)

    def put(name: str, metric: str) -> None:
        value = row[GPU_INDEX[metric]]
        if value != UNKNOWN:
            setattr(made, name, value)

    for name, metric in _FIELDS.items():
        put(name, metric)
    clock = row[GPU_INDEX["gfx_clock_mhz"]]
    if clock != UNKNOWN:
        for at in range(8):
            made.current_gfxclks[at] = max(0, clock)
    mask = row[GPU_INDEX["xgmi_up_mask"]]
    for peer in range(8):
        moved = row[GPU_INDEX[f"xgmi_link_{peer}_kb"]] if peer < gpus else UNKNOWN
        own = peer == number
        made.xgmi_read_data_acc[peer] = 0 if own or moved == UNKNOWN else moved // 2
        made.xgmi_write_data_acc[peer] = 0 if own or moved == UNKNOWN else moved - moved // 2
        made.xgmi_link_status[peer] = 2 if own else int(mask != UNKNOWN and bool(mask >> peer & 1))
    return bytes(made)


_FIELDS = {
    "current_socket_power": "power_w",
    "energy_accumulator": "energy_j",
    "temperature_hotspot": "temperature_hotspot_c",
    "temperature_mem": "temperature_hbm_c",
    "temperature_vrsoc": "temperature_vr_c",
    "average_gfx_activity": "gfx_activity_percent",
    "average_umc_activity": "umc_activity_percent",
    "current_uclk": "umc_clock_mhz",
    "ppt_residency_acc": "throttle_ppt_ticks",
    "prochot_residency_acc": "throttle_prochot_ticks",
    "socket_thm_residency_acc": "throttle_thermal_ticks",
    "vr_thm_residency_acc": "throttle_vr_ticks",
    "hbm_thm_residency_acc": "throttle_hbm_ticks",
    "accumulation_counter": "accumulation_ticks",
    "firmware_timestamp": "accumulation_ticks",
    "pcie_link_width": "pcie_width_lanes",
    "pcie_link_speed": "pcie_speed_gtps",
    "pcie_replay_count_acc": "pcie_replay_total",
    "pcie_nak_sent_count_acc": "pcie_nak_sent_total",
    "pcie_nak_rcvd_count_acc": "pcie_nak_received_total",
    "pcie_l0_to_recov_count_acc": "pcie_recovery_total",
}


def of_row(wrapper: Any, row: tuple[int, ...], number: int, gpus: int) -> list[Answer]:
    """Everything that one GPU answers while it is read: from its row, as the device would."""
    name = "amdsmi_get_gpu_metrics_info"
    if row[GPU_INDEX["present"]] == UNKNOWN:
        return [Answer(name, number, delay_ms=FOR_EVER)]
    if row[GPU_INDEX["present"]] == 0:
        return [Answer(name, number, status=NOT_FOUND)]
    found = [Answer(name, number, body=metrics(wrapper, row, number, gpus))]
    for kind, block in BLOCKS.items():
        counts = [_count(row, f"ecc_{kind}_{sort}_total") for sort in ("correctable", "uncorrectable", "deferred")]
        found.append(_errors(wrapper, number, block, counts))
    found += [_errors(wrapper, number, block, [0, 0, 0]) for block in QUIET_BLOCKS]
    used, total = _count(row, "vram_used_mib") << 20, _count(row, "vram_total_mib") << 20
    found.append(Answer("amdsmi_get_gpu_memory_usage", number, body=struct.pack("<Q", used)))
    found.append(Answer("amdsmi_get_gpu_memory_total", number, body=struct.pack("<Q", total)))
    found.append(Answer("amdsmi_get_gpu_bad_page_info", number, count=_count(row, "bad_pages_total")))
    threshold = struct.pack("<I", _count(row, "bad_page_threshold"))
    return [*found, Answer("amdsmi_get_gpu_bad_page_threshold", number, body=threshold)]


def _count(row: tuple[int, ...], metric: str) -> int:
    at = GPU_INDEX.get(metric)
    return 0 if at is None or row[at] == UNKNOWN else row[at]


def _errors(wrapper: Any, number: int, block: str, counts: list[int]) -> Answer:
    made = wrapper.amdsmi_error_count_t(*counts)
    return Answer("amdsmi_get_gpu_ecc_count", number, getattr(wrapper, f"AMDSMI_GPU_BLOCK_{block}"), body=bytes(made))


def of_identity(wrapper: Any, gpu: GpuFacts, kfd_id: int, driver: str, vbios: str) -> list[Answer]:
    """Everything that one GPU says of itself once."""
    at = gpu.index
    domain, bus, rest = gpu.pci_address.split(":")
    device, function = rest.split(".")
    place = int(function, 16) | int(device, 16) << 3 | int(bus, 16) << 8
    asic = wrapper.amdsmi_asic_info_t(market_name=b"AMD Instinct MI300X", asic_serial=gpu.serial.encode(), oam_id=at)
    board = wrapper.amdsmi_board_info_t(product_serial=gpu.serial.encode())
    firmware = wrapper.amdsmi_fw_info_t(num_fw_info=1)
    firmware.fw_info_list[0].fw_id = wrapper.AMDSMI_FW_ID_SMU
    firmware.fw_info_list[0].fw_version = 0x55_70_00
    compute, memory = gpu.partition.split("/")
    loaded = wrapper.amdsmi_driver_info_t(driver_version=driver.encode())
    cap = wrapper.amdsmi_power_cap_info_t(power_cap=gpu.power_cap_w * 1_000_000)
    limits = {1: gpu.hotspot_limit_c, 2: gpu.hbm_limit_c}
    return [
        Answer("amdsmi_get_gpu_device_bdf", at, body=struct.pack("<Q", place | int(domain, 16) << 16)),
        Answer("amdsmi_get_gpu_bdf_id", at, body=struct.pack("<Q", place | int(domain, 16) << 32)),
        Answer("amdsmi_get_gpu_asic_info", at, body=bytes(asic)),
        Answer("amdsmi_get_gpu_board_info", at, body=bytes(board)),
        Answer("amdsmi_get_gpu_driver_info", at, body=bytes(loaded)),
        Answer("amdsmi_get_gpu_vbios_info", at, body=bytes(wrapper.amdsmi_vbios_info_t(part_number=vbios.encode()))),
        Answer("amdsmi_get_gpu_kfd_info", at, body=bytes(wrapper.amdsmi_kfd_info_t(kfd_id=kfd_id, node_id=at + 1))),
        Answer("amdsmi_get_fw_info", at, body=bytes(firmware)),
        Answer("amdsmi_get_gpu_device_uuid", at, body=gpu.uuid.encode()[:37] + b"\0"),
        Answer("amdsmi_get_gpu_compute_partition", at, body=compute.encode() + b"\0"),
        Answer("amdsmi_get_gpu_memory_partition", at, body=memory.encode() + b"\0"),
        Answer("amdsmi_get_power_cap_info", at, body=bytes(cap)),
        *(Answer("amdsmi_get_temp_metric", at, sensor, 5, body=struct.pack("<q", c)) for sensor, c in limits.items()),
    ]


def of_records(wrapper: Any, number: int, afids: list[int]) -> Answer:
    """A GPU's error log: a record for each identifier, oldest first."""
    body = b""
    for afid in afids:
        header = wrapper.amdsmi_cper_hdr_t(signature=b"CPER")
        tail = struct.pack("<QI", afid, 1)
        header.record_length = ctypes.sizeof(header) + len(tail)
        body += struct.pack("<I", header.record_length) + bytes(header) + tail
    return Answer("amdsmi_get_gpu_cper_entries", number, body=body)


def of_library(wrapper: Any, gpus: int, version: tuple[int, int, int]) -> list[Answer]:
    """What the library says of itself."""
    made = wrapper.amdsmi_version_t()
    made.major, made.minor, made.release = version
    return [
        Answer("amdsmi_init"),
        Answer("amdsmi_get_lib_version", body=bytes(made)),
        Answer("amdsmi_get_socket_handles", count=gpus),
    ]
