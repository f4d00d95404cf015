"""Shape-conforming invented data for the live pages: fleet frames, nodes. A test double only.

The story is fixed: one node has an uncorrectable memory error and one is silent. A run's experts: fake_training.py.
"""

import json
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {"u1": np.uint8, "u4": np.uint32, "f4": np.float32, "f8": np.float64}
STATES = ["training", "idle", "warning", "fault", "drained", "nodata"]
HOSTILE = "<img src=x onerror=alert(1)>{b}'\"&"


def pack(kind: str, arrays: dict[str, tuple[str, NDArray[Any]]], **meta: Any) -> bytes:
    """A binary frame of the contract: header with offsets from the payload's start, arrays aligned to 8 bytes."""
    rows, payload = [], b""
    for name, (dtype, values) in arrays.items():
        body = np.ascontiguousarray(values, dtype=DTYPES[dtype]).tobytes()
        rows.append({"name": name, "dtype": dtype, "shape": list(values.shape), "offset": len(payload)})
        payload += body + b"\0" * (-len(body) % 8)
    header = json.dumps({"kind": kind, "arrays": rows, **meta}).encode()
    header += b" " * (-(8 + len(header)) % 8)
    return b"TTF1" + struct.pack("<I", len(header)) + header + payload


@dataclass
class Fleet:
    """The nodes and what they say."""

    nodes: int = 128
    gpus: int = 8
    simulated: bool = True
    name: str = "sim-node"
    drills: list[dict[str, Any]] = field(default_factory=list)
    cordoned: set[str] = field(default_factory=set)

    def names(self) -> list[str]:
        width = 3 if self.nodes > 99 else 2
        return [f"{self.name}-{node:0{width}d}" for node in range(self.nodes)]

    def faulty(self) -> int:
        return 17 if self.nodes > 17 else 2

    def silent(self) -> int:
        return 44 if self.nodes > 44 else -1

    def state(self) -> NDArray[np.uint8]:
        state = np.zeros((self.nodes, self.gpus), dtype=np.uint8)
        if not self.nodes:
            return state
        state[-2:] = 1
        if self.nodes > 9:
            state[9, 4] = 2
        state[self.faulty()] = 4
        state[self.faulty(), 3] = 3
        if self.silent() >= 0:
            state[self.silent()] = 5
        return state

    def measures(self) -> dict[str, NDArray[np.float64]]:
        state, random = self.state(), np.random.default_rng(11)
        busy = state == 0
        power = np.where(busy, random.normal(690, 25, state.shape), random.normal(168, 4, state.shape))
        heat = np.where(busy, random.normal(72, 4, state.shape), random.normal(46, 1.5, state.shape))
        ecc = np.where(state == 3, 1893.0, 0.0)
        silent = state == 5
        links = np.where(silent, np.nan, 7.0)
        measures = {"xgmi": links, "nic": np.where(silent, np.nan, 1.0), "job": np.zeros_like(power)}
        return {
            "power": np.where(silent, np.nan, power),
            "temperature": np.where(silent, np.nan, heat),
            "ecc": ecc,
            **measures,
        }

    def frame(self) -> tuple[str, bytes]:
        second = int(time.time())
        measures = self.measures()
        arrays: dict[str, tuple[str, NDArray[Any]]] = {"state": ("u1", self.state())}
        arrays |= {name: ("f4", values) for name, values in measures.items()}
        meta = {"nodes": self.names(), "gpus": self.gpus, "at_s": time.time() - 0.4, "simulated": self.simulated}
        return f'"fleet-{second}"', pack("fleet", arrays, states=STATES, jobs=["zaya1-8b-pt2"], **meta)

    def rows(self) -> list[dict[str, Any]]:
        """A NodeRow a node."""
        state, measures = self.state(), self.measures()
        rows = []
        for node, name in enumerate(self.names()):
            gpus = [
                {
                    "index": gpu,
                    "state": STATES[state[node, gpu]],
                    "power_w": _known(measures["power"][node, gpu]),
                    "temperature_hotspot_c": _known(measures["temperature"][node, gpu]),
                    "ecc_uncorrectable": int(measures["ecc"][node, gpu]),
                    "vram_used_gib": 148.2 if state[node, gpu] == 0 else 0.3,
                    "xgmi_links_up": 7,
                }
                for gpu in range(self.gpus)
            ]
            rows.append(self.row(node, name, gpus))
        return rows

    def row(self, node: int, name: str, gpus: list[dict[str, Any]]) -> dict[str, Any]:
        bad, silent = node == self.faulty(), node == self.silent()
        fault = {
            "rule": "hbm_uncorrectable",
            "severity": "critical",
            "entity": "gpu3",
            "gpu": 3,
            "since_s": 7920.0,
            "sentence": "GPU 3 reported 1,893 uncorrectable memory errors.",
            "incident": 412,
        }
        return {
            "name": name,
            "state": "quarantined" if bad else "suspect" if silent else "healthy",
            "cordoned": bad or name in self.cordoned,
            "state_reason": "GPU 3 reported 1,893 uncorrectable memory errors." if bad else "",
            "age_s": 42.0 if silent else 0.4,
            "simulated": self.simulated,
            "source": "simulated",
            "gpus": gpus,
            "nics_up": 8,
            "nics": 8,
            "run": None if bad or node >= self.nodes - 2 else "run-01",
            "findings": [fault] if bad else [],
        }

    def view(self, name: str) -> dict[str, Any] | None:
        """A NodeView, or None."""
        row = next((row for row in self.rows() if row["name"] == name), None)
        if row is None:
            return None
        now = time.time()
        events = [
            ("hardware", "fault", "ECC 0 → 1,893 on GPU 3", 0.0),
            ("rule", "info", "rule hbm_uncorrectable matched", 1.8),
            ("run", "info", "decision: restart without the node", 2.2),
            ("run", "ok", "drained, 0 jobs left", 43.0),
        ]
        timeline = [
            {
                "at_s": now - 7920 + after,
                "lane": lane,
                "kind": "fault",
                "sentence": text,
                "detail": "",
                "level": level,
                "link": None,
            }
            for lane, level, text, after in events
        ]
        facts = {"gpu_model": "AMD Instinct MI300X", "driver": "6.16.6", "firmware": "24.12", "hostname": name}
        return {
            **row,
            "facts": facts,
            "faults": row["findings"],
            "timeline": timeline if row["findings"] else [],
            "kernel": [],
            "users": [],
            "drills": [{"kind": "hbm-uncorrectable", "title": "uncorrectable memory errors"}],
        }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 1)
