"""RDMA ports, Pollara's above all: link, rate and the counters of retries, retransmission, congestion and order.

Everything is a file under /sys/class/infiniband and the port's network interface; which counter of a driver is which
metric stands in one table, and a counter that a driver does not have is unknown.
"""

from __future__ import annotations

from pathlib import Path

from agents.node.sources.files import KernelFile, Tree
from agents.readings import NIC_INDEX, NIC_METRICS, UNKNOWN, NicFacts

COUNTERS: dict[str, tuple[str, ...]] = {
    "rx_bytes_total": ("rx_rdma_ucast_bytes",),
    "tx_bytes_total": ("tx_rdma_ucast_bytes",),
    "packets_total": ("tx_rdma_ucast_pkts",),
    "packets_received_total": ("rx_rdma_ucast_pkts",),
    "retransmits_total": ("tx_rdma_retx_pkts", "packet_seq_err"),
    "rdma_retry_exceeded_total": ("req_tx_retry_excd_err", "req_transport_retries_exceeded"),
    "ack_timeout_total": ("tx_rdma_ack_timeout", "local_ack_timeout_err"),
    "cnp_received_total": ("rx_rdma_cnp_pkts", "rp_cnp_handled"),
    "ecn_received_total": ("rx_rdma_ecn_pkts", "np_ecn_marked_roce_packets"),
    "out_of_order_total": ("resp_rx_outouf_seq", "resp_rx_outof_seq", "out_of_sequence"),
}
"""The names of a metric's counter, the ionic driver's first."""
ACTIVE, LINK_UP = "4:", "5:"


class Port:
    """Port 1 of one device, and the network interface that belongs to it."""

    def __init__(self, index: int, folder: Path) -> None:
        self.index, self.name, self._folder = index, folder.name, folder
        device = folder / "device"
        interface = next(iter(sorted((device / "net").glob("*"))), None)
        self.interface = interface.name if interface else ""
        port = folder / "ports" / "1"
        self._state, self._physical = KernelFile(port / "state"), KernelFile(port / "phys_state")
        self._rate = KernelFile(port / "rate")
        self._carrier = KernelFile(interface / "carrier") if interface else None
        self._downs = KernelFile(interface / "carrier_down_count") if interface else None
        counters = port / "hw_counters"
        self._counters = {
            metric: KernelFile(found)
            for metric, names in COUNTERS.items()
            if (found := next((counters / name for name in names if (counters / name).exists()), None))
        }
        real = device.resolve() if device.exists() else device
        self.address = real.name if real != device else ""
        driver = device / "driver"
        self.driver = driver.resolve().name if driver.exists() else ""
        self._firmware = KernelFile(folder / "fw_ver")

    def facts(self) -> NicFacts:
        """Who the port is."""
        rate = self._gigabits()
        return NicFacts(
            index=self.index,
            name=self.name,
            driver=self.driver,
            rate_gbps=0 if rate == UNKNOWN else rate,
            pci_address=self.address,
            interface=self.interface,
            firmware=self._firmware.text() or "",
        )

    def read(self) -> tuple[int, ...]:
        """A row of NIC_METRICS."""
        row = [UNKNOWN] * len(NIC_METRICS)
        row[NIC_INDEX["link_up"]] = self._link()
        row[NIC_INDEX["rate_gbps"]] = self._gigabits()
        if self._downs is not None:
            row[NIC_INDEX["carrier_changes_total"]] = self._downs.number()
        for metric, file in self._counters.items():
            row[NIC_INDEX[metric]] = file.number()
        return tuple(row)

    def _link(self) -> int:
        """1 if the port is active and its physical link is up, by its own word; the interface's where it says nothing.

        A port that is gone altogether has no link; one of which nothing can be read is unknown.
        """
        state, physical = self._state.text(), self._physical.text()
        if state is None and physical is None:
            if not self._folder.exists() and self._folder.parent.is_dir():
                return 0
            carrier = self._carrier.number() if self._carrier else UNKNOWN
            return carrier if carrier in (0, 1) else UNKNOWN
        return int((state or ACTIVE).startswith(ACTIVE) and (physical or LINK_UP).startswith(LINK_UP))

    def _gigabits(self) -> int:
        """From a text like `400 Gb/sec (4X NDR)`."""
        text = (self._rate.text() or "").split()
        try:
            return round(float(text[0])) if text else UNKNOWN
        except ValueError:
            return UNKNOWN


class Nics:
    """The RDMA ports of this node, in order of name; `blind` says why there are none."""

    def __init__(self, tree: Tree) -> None:
        folders = sorted(tree.listed("sys/class/infiniband"), key=lambda one: (len(one.name), one.name))
        self.ports = [Port(at, folder) for at, folder in enumerate(folders)]
        self.blind = "" if self.ports else "no RDMA port: /sys/class/infiniband is empty or not mounted"

    def sample(self) -> tuple[tuple[int, ...], ...]:
        """A row a port."""
        return tuple(port.read() for port in self.ports)
