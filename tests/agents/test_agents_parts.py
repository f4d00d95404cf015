"""Ports, host, processes and pods over real file formats; each may be blind, and the others go on."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from agents.node.attribution import attribution, named
from agents.node.sources.files import KernelFile, Tree, below_ports, nearest
from agents.node.sources.host import Host, clock_offset_ms, free_tenths
from agents.node.sources.kfd import group_of
from agents.node.sources.machine import POD_SOCKET, MachineSource
from agents.node.sources.nic import Nics
from agents.node.sources.pods import METHOD, PodResources, response_type
from agents.probe.ring import RingMeta
from agents.readings import HOST_INDEX, NIC_INDEX, UNKNOWN, GpuUser
from agents.stub.node import TRAINER_PID, StubNode
from tests.agents.conftest import places

POD = "0f3e2d1c-aaaa-bbbb-cccc-0123456789ab"
META = RingMeta("run-1", 2, 5, rank=0, world=8, layers=1, slots=2, experts=2, top_k=1, pid=7)


def nic(row: tuple[int, ...], metric: str) -> int:
    return row[NIC_INDEX[metric]]


# --- ports -----------------------------------------------------------------------------------------------------------


def test_a_port_that_is_unplugged_gone_or_unreadable_is_told_apart(stub: StubNode) -> None:
    nics = Nics(Tree(stub.tree))
    stub.drill("nic-down", 3)
    stub.beat(1.0)
    shutil.rmtree(stub.tree / "sys/class/infiniband/ionic_5")
    (stub.tree / "sys/class/infiniband/ionic_6/ports/1/state").unlink()
    (stub.tree / "sys/class/infiniband/ionic_6/ports/1/phys_state").unlink()
    shutil.rmtree((stub.tree / "sys/class/infiniband/ionic_6/device/net").resolve())
    for port in nics.ports:
        for file in (port._state, port._physical, *port._counters.values()):
            file.close()
        if port._carrier is not None:
            port._carrier.close()
    rows = nics.sample()
    assert [nic(row, "link_up") for row in rows] == [1, 1, 1, 0, 1, 0, UNKNOWN, 1]
    assert nic(rows[3], "carrier_changes_total") == 1
    assert nic(rows[5], "rdma_retry_exceeded_total") == UNKNOWN


def test_counters_of_another_driver_are_read_and_missing_ones_unknown(tmp_path: Path) -> None:
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    for name, text in {
        "state": "4: ACTIVE",
        "rate": "400 Gb/sec (4X NDR)",
        "hw_counters/out_of_sequence": "17",
    }.items():
        (port / name).parent.mkdir(parents=True, exist_ok=True)
        (port / name).write_text(text + "\n")
    (row,) = Nics(Tree(tmp_path)).sample()
    assert (nic(row, "link_up"), nic(row, "rate_gbps"), nic(row, "out_of_order_total")) == (1, 400, 17)
    assert nic(row, "retransmits_total") == nic(row, "carrier_changes_total") == UNKNOWN


def test_a_machine_without_ports_says_so(tmp_path: Path) -> None:
    nics = Nics(Tree(tmp_path))
    assert nics.sample() == () and "infiniband" in nics.blind


def test_ports_above_one_device_speak_for_it_and_shared_ones_for_none(stub: StubNode) -> None:
    tree = Tree(stub.tree)
    gpus = [gpu.pci_address for gpu in stub.facts.gpus]
    ports = [one.pci_address for one in stub.facts.nics]
    found = below_ports(tree, gpus + ports)
    assert found["0000:64:01.0"] == gpus[3] and found["0000:64:02.0"] == ports[3]
    assert "0000:63:00.0" not in found, "the switch is above both"
    assert nearest(tree, gpus[3], ports) == ports[3] and nearest(tree, "0000:ff:00.0", ports) == ""


# --- host ------------------------------------------------------------------------------------------------------------


def test_the_host_of_this_test_is_read(tmp_path: Path) -> None:
    (row,) = Host(Tree(), (tmp_path, tmp_path / "not there")).sample(10.0)
    assert 0 < row[HOST_INDEX["memory_available_mib"]] <= row[HOST_INDEX["memory_total_mib"]]
    assert 0 <= row[HOST_INDEX["disk_free_percent"]] <= 1000
    assert free_tenths(tmp_path / "not there") == UNKNOWN
    assert clock_offset_ms() == UNKNOWN or clock_offset_ms() >= 0


def test_without_proc_the_host_is_unknown_and_says_so(tmp_path: Path) -> None:
    host = Host(Tree(tmp_path), ())
    (row,) = host.sample(10.0)
    assert {row[at] for name, at in HOST_INDEX.items() if name != "clock_offset_ms"} == {UNKNOWN}
    assert "/proc" in host.blind


# --- who uses what ---------------------------------------------------------------------------------------------------


def test_processes_pods_runs_and_ranks_meet_on_a_gpu(stub: StubNode, machine: MachineSource) -> None:
    stub.source.follow(3.0)
    stub.beat(1.0)
    assert machine.sample(1.0, 1.0).gpus[0] != ()
    users = named(machine.users(), [META])
    assert {user.gpu for user in users} == set(range(8)) and {user.pid for user in users} == {TRAINER_PID}
    assert {(user.run_id, user.rank, user.pod) for user in users} == {
        ("run-1", 0, "0f3e2d1c-aaaa-bbbb-cccc-0123456789ab")
    }
    stub.source.follow(None)
    stub.beat(4.0)
    machine.sample(4.0, 4.0)
    assert machine.users() == ()


def test_each_gpu_and_the_port_beside_it_have_their_own_rank(machine: MachineSource) -> None:
    facts = machine.facts()
    ranks = [replace(META, rank=8 + at, pid=100 + at) for at in range(8)]
    users = tuple(GpuUser(at, 100 + at, "python", 1, pod=f"pod-{at}", run_id="run-1", rank=8 + at) for at in range(8))
    who = attribution(ranks, users, facts, {11: 70.0, 8: 1.0})
    assert (who.of("gpu3").rank, who.of("nic3").rank, who.of("gpu3").pod) == (11, 11, "pod-3")
    assert (who.of("gpu3").heartbeat_age_s, who.of("gpu0").heartbeat_age_s, who.rank) == (70.0, 1.0, 8)
    unseen = attribution(ranks, (), facts, {})
    assert unseen.of("gpu3").rank == 11 and unseen.of("gpu3").heartbeat_age_s is None
    single = attribution([META], (), facts, {0: 2.0})
    assert single.of("gpu5").rank == 0 and single.of("host").run_id == "run-1"
    assert attribution([], users, facts, {}).of("gpu3").run_id == ""
    assert attribution([], users, facts, {}).of("gpu3").pod == "pod-3"


@pytest.mark.parametrize(
    ("text", "pod"),
    [
        (f"0::/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{'c' * 64}.scope", POD),
        (f"0::/kubepods/burstable/pod{POD}/{'c' * 64}", POD),
        ("0::/user.slice/user-1000.slice", ""),
    ],
)
def test_a_control_group_names_its_pod(text: str, pod: str) -> None:
    assert group_of(text) == (pod, "c" * 64 if pod else "")


class Kubelet:
    """A real gRPC server on a socket, with the kubelet's one method that is asked here."""

    def __init__(self, socket: Path) -> None:
        # a socket's path may have 107 bytes, fewer than the test's own folder
        self._folder = Path(tempfile.mkdtemp(prefix="pods"))
        socket.parent.parent.mkdir(parents=True, exist_ok=True)
        socket.parent.symlink_to(self._folder)
        self.answer = response_type()()
        self._server = grpc.server(futures.ThreadPoolExecutor(1))
        handler = grpc.unary_unary_rpc_method_handler(
            lambda _request, _context: self.answer.SerializeToString(), None, lambda body: body
        )
        service, method = METHOD.strip("/").split("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self._server.add_insecure_port(f"unix://{self._folder / socket.name}")
        self._server.start()

    def give(self, pod: str, container: str, devices: list[str]) -> None:
        row = self.answer.pod_resources.add(name=pod, namespace="train")
        row.containers.add(name=container).devices.add(resource_name="amd.com/gpu", device_ids=devices)

    def close(self) -> None:
        self._server.stop(0).wait()
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture
def kubelet(stub: StubNode) -> Iterator[Kubelet]:
    found = Kubelet(stub.tree / POD_SOCKET)
    yield found
    found.close()


def test_the_kubelet_says_which_pod_has_a_gpu(stub: StubNode, kubelet: Kubelet) -> None:
    kubelet.give("zaya-0", "trainer", [stub.facts.gpus[3].pci_address, stub.facts.gpus[4].pci_address])
    source = MachineSource("node-a", places(stub), {})
    stub.source.follow(3.0)
    stub.beat(1.0)
    source.sample(time.time(), 100.0)
    source._pods.wait(5.0)
    source.sample(time.time(), 103.0)
    by_gpu = {user.gpu: (user.pod, user.container) for user in source.users()}
    assert by_gpu[3] == by_gpu[4] == ("train/zaya-0", "trainer")
    assert by_gpu[0][0] == POD, "of the others the control group says it"
    assert source.facts().blind == ()
    source.close()


def test_a_kubelet_that_goes_away_keeps_nobody_waiting(stub: StubNode, kubelet: Kubelet) -> None:
    kubelet.give("zaya-0", "trainer", ["0000:65:00.0"])
    pods = PodResources(stub.tree / POD_SOCKET)
    pods.known(0.0)
    pods.wait(5.0)
    assert pods.known(1.0) == {"0000:65:00.0": ("train/zaya-0", "trainer")}
    kubelet.close()
    begun = time.monotonic()
    assert pods.known(20.0) == {"0000:65:00.0": ("train/zaya-0", "trainer")}, "what it said last stays true"
    assert time.monotonic() - begun < 0.5
    pods.wait(5.0)
    (stub.tree / POD_SOCKET).parent.unlink()
    (stub.tree / POD_SOCKET).parent.mkdir()
    (stub.tree / POD_SOCKET).write_text("")
    pods.known(40.0)
    pods.wait(5.0)
    assert "does not say" in pods.blind


def test_a_file_is_opened_anew_after_it_was_gone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = KernelFile(path)
    assert file.number() == UNKNOWN
    path.write_text("12 kB\n")
    assert file.number() == 12
    path.write_text("no number\n")
    assert file.number() == UNKNOWN and file.text() == "no number"
