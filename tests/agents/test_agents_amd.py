"""The amd source through the real `amdsmi` over a stand-in library: values, sentinels, errors, hung calls, guards."""

from __future__ import annotations

import ctypes
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.node.sources.amd import gpus as gpus_module
from agents.node.sources.amd.binding import Binding, family_of
from agents.node.sources.amd.gpus import AmdGpus
from agents.node.sources.base import SourceError
from agents.node.sources.machine import MachineSource
from agents.readings import GPU_INDEX, GPU_METRICS, HOST_METRICS, NIC_METRICS, UNKNOWN
from agents.stub.node import StubNode
from agents.stub.state import FOR_EVER, NOT_FOUND, Answer, of_records
from tests.agents.conftest import places

METRICS = "amdsmi_get_gpu_metrics_info"
NOT_SUPPORTED, BUSY, NO_PERMISSION = 2, 30, 10
SPLIT = {"xgmi_read_kb", "xgmi_write_kb"}
"""The library knows both directions of each link, the simulation their sum."""


def value(row: tuple[int, ...], metric: str) -> int:
    return row[GPU_INDEX[metric]]


def answered(stub: StubNode, number: int, change: Any) -> None:
    """One GPU's metrics, with fields changed."""
    made = stub._wrapper.amdsmi_gpu_metrics_t.from_buffer_copy(stub.state.answers[METRICS, number, 0, 0].body)
    change(made)
    stub.state.put(Answer(METRICS, number, body=bytes(made)))
    stub.state.write()


def test_every_value_of_every_device_is_what_the_device_holds(stub: StubNode, machine: MachineSource) -> None:
    stub.source.follow(3.0)
    for second in range(1, 8):
        held = stub.beat(float(second))
        found = machine.sample(float(second), float(second))
    for number, (row, there) in enumerate(zip(found.gpus, held.gpus, strict=True)):
        for metric, one, other in zip(GPU_METRICS, row, there, strict=True):
            if metric.name not in (*SPLIT, "read_ms"):
                assert one == other, (number, metric.name)
        assert sum(value(row, name) for name in SPLIT) == pytest.approx(sum(value(there, n) for n in SPLIT), rel=1e-3)
        assert 0 <= value(row, "read_ms") < 500
    for row, there in zip(found.nics, held.nics, strict=True):
        named = zip(NIC_METRICS, row, there, strict=True)
        assert {metric.name: (one, other) for metric, one, other in named if one != other} == {}
    named = zip(HOST_METRICS, found.host[0], held.host[0], strict=True)
    assert {metric.name: (one, other) for metric, one, other in named if one != other} == {}


def test_identity_limits_and_the_port_beside_each_gpu_are_known(stub: StubNode, machine: MachineSource) -> None:
    facts = machine.facts()
    for gpu, there in zip(facts.gpus, stub.facts.gpus, strict=True):
        assert gpu == there
    assert (facts.simulated, facts.source, facts.driver, facts.vbios) == (
        True,
        "amd",
        *(stub.facts.driver, stub.facts.vbios),
    )
    assert "stub" in facts.gpu_model and "SMU" in facts.firmware
    assert [(nic.name, nic.pci_address, nic.interface) for nic in facts.nics] == [
        (nic.name, nic.pci_address, nic.interface) for nic in stub.facts.nics
    ]
    assert any("kubelet" in part for part in facts.blind) and len(facts.blind) == 1


def test_what_the_library_calls_not_available_has_no_value(stub: StubNode, machine: MachineSource) -> None:
    def blank(made: Any) -> None:
        ctypes.memset(ctypes.byref(made), 0xFF, ctypes.sizeof(made))

    answered(stub, 2, blank)
    row = machine.sample(1.0, 1.0).gpus[2]
    known = {metric.name for metric, one in zip(GPU_METRICS, row, strict=True) if one != UNKNOWN}
    assert (
        not {"power_w", "energy_j", "gfx_activity_percent", "gfx_clock_mhz", "xgmi_links_up", "pcie_width_lanes"}
        & known
    )
    assert {"present", "ecc_hbm_uncorrectable_total", "vram_used_mib"} <= known


def test_sentinels_are_per_array_slot(stub: StubNode, machine: MachineSource) -> None:
    def some(made: Any) -> None:
        made.average_gfx_activity = 0xFFFF
        for at in range(8):
            made.current_gfxclks[at] = 0xFFFF if at > 1 else (1000, 2000)[at]
            made.xcp_stats[0].gfx_busy_inst[at] = 0xFFFFFFFF if at > 1 else (40, 60)[at]
        made.xgmi_read_data_acc[5] = 0xFFFFFFFFFFFFFFFF

    answered(stub, 1, some)
    row = machine.sample(1.0, 1.0).gpus[1]
    assert (value(row, "gfx_clock_mhz"), value(row, "gfx_activity_percent")) == (1500, 50)
    assert value(row, "xgmi_link_5_kb") == UNKNOWN != value(row, "xgmi_link_4_kb")


def test_links_that_are_all_down_are_links_of_which_nothing_is_known(stub: StubNode, machine: MachineSource) -> None:
    def down(made: Any) -> None:
        for at in range(8):
            made.xgmi_link_status[at] = 0

    answered(stub, 4, down)
    row = machine.sample(1.0, 1.0).gpus[4]
    assert value(row, "xgmi_links_up") == value(row, "xgmi_up_mask") == UNKNOWN
    assert value(machine.sample(2.0, 2.0).gpus[3], "xgmi_up_mask") == 0xFF & ~(1 << 3)


@pytest.mark.parametrize(("status", "present"), [(NOT_FOUND, 0), (7, 0), (BUSY, UNKNOWN), (NO_PERMISSION, UNKNOWN)])
def test_an_error_is_a_device_that_is_gone_or_one_of_which_nothing_is_known(
    stub: StubNode, machine: MachineSource, status: int, present: int
) -> None:
    stub.state.put(Answer(METRICS, 6, status=status))
    stub.state.write()
    rows = machine.sample(1.0, 1.0).gpus
    assert value(rows[6], "present") == present and value(rows[6], "power_w") == UNKNOWN
    assert all(value(row, "present") == 1 for row in (*rows[:6], rows[7]))


def test_a_gpu_that_answers_without_values_is_no_fault_and_is_told(stub: StubNode, machine: MachineSource) -> None:
    stub.state.put(Answer(METRICS, 6, status=BUSY))
    stub.state.write()
    for second in range(1, 13):
        machine.sample(float(second), float(second))
        assert any("GPU 6 answers status 30" in part for part in machine.facts().blind) == (second > 10)
    stub.beat(13.0)
    machine.sample(13.0, 13.0)
    assert not any("GPU 6" in part for part in machine.facts().blind)


def test_a_call_that_hangs_holds_up_nobody_and_its_age_is_told(
    stub: StubNode, machine: MachineSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus_module, "DEADLINE_S", 0.1)
    healthy = stub.state.answers[METRICS, 3, 0, 0]
    stub.state.put(replace(healthy, delay_ms=FOR_EVER))
    stub.state.write()
    begun = time.monotonic()
    first, second = machine.sample(1.0, 1.0).gpus, machine.sample(2.0, 2.0).gpus
    assert value(first[3], "present") == UNKNOWN and value(first[2], "present") == 1
    assert 80 < value(first[3], "read_ms") <= value(second[3], "read_ms")
    assert time.monotonic() - begun < 2.0, "only the first sample waited for it"
    stub.state.put(healthy)
    stub.state.write()
    until = time.monotonic() + 5
    while value(machine.sample(3.0, 3.0).gpus[3], "present") != 1 and time.monotonic() < until:
        time.sleep(0.02)
    assert value(machine.sample(4.0, 4.0).gpus[3], "power_w") != UNKNOWN, "it is read again once it has answered"


def test_blocks_that_are_missing_are_asked_for_once_and_their_counts_are_unknown(stub: StubNode) -> None:
    wrapper = stub._wrapper
    for block in (wrapper.AMDSMI_GPU_BLOCK_XGMI_WAFL,):
        stub.state.put(Answer("amdsmi_get_gpu_ecc_count", 0, block, status=NOT_SUPPORTED))
    stub.state.write()
    source = MachineSource("node-a", places(stub), {})
    row = source.sample(1.0, 1.0).gpus[0]
    assert value(row, "ecc_xgmi_uncorrectable_total") == UNKNOWN and value(row, "ecc_hbm_uncorrectable_total") == 0
    blocks = source._gpus.readers[0]._known_blocks()
    assert blocks["xgmi"] == [] and len(blocks["other"]) == 5, "GFX, SDMA, MMHUB, PCIE_BIF, HDP"
    source.close()


def test_a_card_that_names_no_threshold_has_the_usual_one(stub: StubNode) -> None:
    stub.state.put(Answer("amdsmi_get_gpu_bad_page_threshold", 5, status=NOT_SUPPORTED))
    stub.state.put(Answer("amdsmi_get_gpu_bad_page_info", 5, count=7))
    stub.state.write()
    source = MachineSource("node-a", places(stub), {})
    row = source.sample(1.0, 1.0).gpus[5]
    assert (value(row, "bad_pages_total"), value(row, "bad_page_threshold")) == (7, 128)
    source.close()


def test_without_access_to_the_devices_each_gpu_still_has_its_address(stub: StubNode) -> None:
    for gpu in range(8):
        stub.state.put(Answer("amdsmi_get_gpu_device_bdf", gpu, status=NOT_SUPPORTED))
    stub.state.write()
    source = MachineSource("node-a", places(stub), {})
    addresses = [gpu.pci_address for gpu in source.facts().gpus]
    assert addresses == [gpu.pci_address for gpu in stub.facts.gpus] and len(set(addresses)) == 8
    source.close()


# --- the error log ---------------------------------------------------------------------------------------------------


def kinds(source: MachineSource, at: float) -> list[tuple[str, str | None]]:
    return [(line.kind, line.pci_address) for line in source.sample(at, at).kernel]


def test_records_of_before_are_old_news_and_new_ones_are_told_once(stub: StubNode) -> None:
    stub.state.put(of_records(stub._wrapper, 2, [20, 21]))
    stub.state.write()
    source = MachineSource("node-a", places(stub), {})
    assert kinds(source, 1.0) == []
    address = stub.facts.gpus[2].pci_address
    stub.state.put(of_records(stub._wrapper, 2, [20, 21, 25, 30]))
    stub.state.write()
    assert kinds(source, 4.0) == [("afid-25", address), ("afid-30", address)]
    assert kinds(source, 7.0) == []
    marks = source.marks()
    source.close()
    stub.state.put(of_records(stub._wrapper, 2, [20, 21, 25, 30, 16]))
    stub.state.write()
    later = MachineSource("node-a", places(stub), marks)
    assert kinds(later, 8.0) == [("afid-16", address)], "what came while no agent ran is told by the next"
    later.close()


def test_more_records_than_a_call_holds_are_all_read(stub: StubNode, machine: MachineSource) -> None:
    machine.sample(1.0, 1.0)
    stub.state.put(of_records(stub._wrapper, 0, [20 + at % 3 for at in range(50)]))
    stub.state.write()
    assert len(machine.sample(4.0, 4.0).kernel) == 50


def test_without_the_right_to_the_error_log_the_rest_is_read_and_it_is_said(stub: StubNode) -> None:
    for gpu in range(8):
        stub.state.put(Answer("amdsmi_get_gpu_cper_entries", gpu, status=NO_PERMISSION))
    stub.state.write()
    source = MachineSource("node-a", places(stub), {})
    assert value(source.sample(1.0, 1.0).gpus[0], "present") == 1
    assert any("debugfs" in part for part in source.facts().blind)
    source.close()


def test_an_error_log_that_fails_is_told_of_and_read_again(stub: StubNode, machine: MachineSource) -> None:
    machine.sample(1.0, 1.0)
    stub.state.put(Answer("amdsmi_get_gpu_cper_entries", 2, status=14))
    stub.state.write()
    machine.sample(4.0, 4.0)
    assert any("status 14" in part for part in machine.facts().blind)
    stub.state.put(of_records(stub._wrapper, 2, [25]))
    stub.state.write()
    assert kinds(machine, 5.0) == [], "it is asked again after a while"
    assert kinds(machine, 70.0) == [("afid-25", stub.facts.gpus[2].pci_address)]
    assert not any("status 14" in part for part in machine.facts().blind)


def test_records_of_a_read_that_is_late_are_told_by_the_next(
    stub: StubNode, machine: MachineSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.sample(1.0, 1.0)
    monkeypatch.setattr(gpus_module, "DEADLINE_S", 0.05)
    stub.state.put(replace(of_records(stub._wrapper, 2, [25]), delay_ms=200))
    stub.state.write()
    assert kinds(machine, 4.0) == []
    time.sleep(0.4)
    assert kinds(machine, 5.0) == [("afid-25", stub.facts.gpus[2].pci_address)]


def test_a_reader_that_breaks_is_blind_and_no_fault(
    stub: StubNode, machine: MachineSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_now_s: float) -> tuple[int, ...]:
        raise AttributeError("amdsmi_gpu_metrics_t has no current_uclk")

    with monkeypatch.context() as at_5:
        at_5.setattr(machine._gpus.readers[5], "read", broken)
        rows = machine.sample(1.0, 1.0).gpus
    assert value(rows[5], "present") == UNKNOWN and value(rows[4], "present") == 1
    assert any("GPU 5 cannot be read" in part and "current_uclk" in part for part in machine.facts().blind)
    machine.sample(2.0, 2.0)
    assert not any("cannot be read" in part for part in machine.facts().blind)


def test_who_uses_a_gpu_without_a_number_in_the_kernel_is_unknown(stub: StubNode) -> None:
    stub.state.put(Answer("amdsmi_get_gpu_kfd_info", 6, status=NOT_SUPPORTED))
    stub.state.write()
    source = MachineSource("node-a", places(stub), {})
    rows = source.sample(1.0, 1.0).gpus
    assert value(rows[6], "processes") == UNKNOWN != value(rows[5], "processes")
    source.close()


# --- guards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "family"),
    [("7.0.2", (26, 0)), ("7.1.0", (26, 1)), ("26.0.2+39589fda", (26, 0)), ("6.4.3", None), ("", None), ("x.y", None)],
)
def test_a_binding_belongs_to_a_family_of_the_library(version: str, family: tuple[int, int] | None) -> None:
    assert family_of(version) == family


def test_a_library_of_another_family_is_refused_before_it_fills_anything(stub: StubNode) -> None:
    made = stub._wrapper.amdsmi_version_t()
    made.major, made.minor, made.release = 26, 2, 0
    stub.state.put(Answer("amdsmi_get_lib_version", body=bytes(made)))
    stub.state.write()
    with pytest.raises(SourceError, match=r"made for 26\.0 of AMD's library, and 26\.2 is installed"):
        Binding()


@pytest.mark.parametrize("change", [256, -256])
def test_a_library_that_fills_another_structure_is_refused(stub: StubNode, change: int) -> None:
    body = stub.state.answers[METRICS, 0, 0, 0].body
    other = body + b"\0" * change if change > 0 else body[:change]
    stub.state.put(Answer(METRICS, 0, body=other))
    stub.state.write()
    with pytest.raises(SourceError, match="fills another structure"):
        AmdGpus(Binding(), {})


def test_a_driver_that_is_not_loaded_and_a_machine_without_gpus_are_said(stub: StubNode) -> None:
    stub.state.put(Answer("amdsmi_get_socket_handles", count=0))
    stub.state.write()
    with pytest.raises(SourceError, match="no GPU on this machine"):
        AmdGpus(Binding(), {})
    stub.state.put(Answer("amdsmi_init", status=34))
    stub.state.write()
    with pytest.raises(SourceError, match="amdgpu driver"):
        Binding()


def test_a_drill_lies_beside_the_state_for_the_stubs_keeper(stub: StubNode, machine: MachineSource) -> None:
    assert machine.apply_drill("hbm-uncorrectable", 3) == ""
    stub.beat(1.0)
    assert value(machine.sample(1.0, 1.0).gpus[3], "ecc_hbm_uncorrectable_total") > 0
    machine._drills = None  # as with a library that is AMD's own
    assert "simulated nodes only" in machine.apply_drill("gpu-lost", 0)


def test_the_load_of_the_driver_is_told_from_the_next(stub: StubNode, machine: MachineSource) -> None:
    first = machine.driver_load()
    assert first.startswith("kfd-")
    device = Path(stub.tree) / "dev/kfd"
    device.unlink()
    folder = machine.driver_load()
    assert folder.startswith("kfd-") and folder != first, "where the device is not shown, by its folder below /sys"
    shutil.rmtree(Path(stub.tree) / "sys/class/kfd")
    assert machine.driver_load() == ""
    time.sleep(0.01)
    device.write_text("")
    assert machine.driver_load() not in ("", first, folder)


def loaded_anew(stub: StubNode) -> None:
    device = Path(stub.tree) / "dev/kfd"
    device.unlink()
    time.sleep(0.01)
    device.write_text("")


def test_a_driver_that_is_loaded_anew_is_asked_anew(stub: StubNode, machine: MachineSource) -> None:
    assert machine.sample(1.0, 1.0).gpus[0][GPU_INDEX["present"]] == 1
    stub.state.put(Answer("amdsmi_init", status=34))
    stub.state.put(Answer("amdsmi_get_gpu_compute_partition", 0, body=b"CPX\0"))
    stub.state.write()
    loaded_anew(stub)
    machine.sample(2.0, 2.0)
    assert machine.facts().gpus[0].partition == "SPX/NPS1", "not ready: what was known stands"
    stub.state.put(Answer("amdsmi_init"))
    stub.state.write()
    workers = threading.active_count()
    assert machine.sample(3.0, 3.0).gpus[0][GPU_INDEX["present"]] == 1
    assert machine.facts().gpus[0].partition == "CPX/NPS1"
    until = time.monotonic() + 5.0
    while threading.active_count() > workers and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == workers, "those of before have ended"
