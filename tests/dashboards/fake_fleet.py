"""Shape-conforming invented data for the live pages: experts and fleet frames, nodes. A test double only.

The story is fixed: layer 23 leans on expert 7 since a change of data, layer 31 has dead experts, layer 12 swings, 9
says nothing, layer 2 uses its skip slot; one node has an uncorrectable memory error and one is silent.
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


RULES = {
    "expert-imbalance": {"cv_floor": 1.5, "worse_cv_floor": 4.0},
    "expert-oscillation": {"lag1": -0.25, "worse_lag1": -0.45},
    "expert-parallel-skew": {"skew": 1.1, "worse_skew": 1.3},
}


@dataclass
class Training:
    """Counts and biases of one run, a function of the step."""

    run: str = "run-01"
    layers: int = 40
    experts: int = 16
    tokens: int = 4096
    simulated: bool = True
    started: float = field(default_factory=time.time)
    seconds_a_step: float = 0.7
    first_step: int = 36_900
    stopped_at: int | None = None
    settling: bool = False
    expert_parallel: int = 1

    @property
    def slots(self) -> int:
        return self.experts + 1

    def step(self) -> int:
        """The newest step: time passes."""
        passed = int((time.time() - self.started) / self.seconds_a_step)
        return self.stopped_at if self.stopped_at is not None else self.first_step + passed

    def share(self, layer: int, step: int) -> NDArray[np.float64]:
        """What each expert of a layer should get at a step, 1 is fair."""
        lean = np.ones(self.experts)
        if layer == 23 and step > self.first_step - 300:
            lean[[7, 2, 4, 10, 13, 11]] = [2.06, 1.37, 0.71, 0.41, 0.54, 0.68]
        elif layer == 31:
            lean[[3, 11]] = 0.0
        elif layer == 12:
            lean += 0.09 * np.cos(2 * np.pi * step / 2.6 + np.arange(self.experts))
        elif 14 < layer < 29:
            lean[layer % self.experts] = 1.16
            lean[(layer * 5) % self.experts] = 0.86
        return lean

    def counts(self, step: int) -> NDArray[np.int64]:
        """Tokens an expert and layer, with the noise of sampling; layer 9 is silent where there are that many."""
        rows = []
        for layer in range(self.layers):
            lean = self.share(layer, step)
            noise = np.random.default_rng([layer, step]).multinomial(self.tokens, lean / lean.sum())
            rows.append([*noise, 17 if layer == 2 else 0])
        counted = np.array(rows)
        if self.layers > 9:
            counted[9] = 0
        return counted

    def bias(self, step: int) -> NDArray[np.float64]:
        lean = np.array([self.share(layer, step) for layer in range(self.layers)])
        since = min(max(step - self.first_step + 300, 0), 2000)
        walk = np.random.default_rng(5).normal(0, 0.002, lean.shape)
        return np.column_stack([walk - (lean - 1) * since * 2.4e-4, np.full(self.layers, -1.0)])

    def floor(self) -> float:
        return float(np.sqrt((self.experts - 1) / self.tokens))

    def cv_floor(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        real = counts[:, : self.experts].astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(real.std(axis=1) / real.mean(axis=1) / self.floor())

    def words(self, step: int) -> dict[str, Any]:
        """What a frame says of itself: its own step and its own figures."""
        counts = self.counts(step)
        cv = self.cv_floor(counts)
        worst = int(np.nanargmax(cv))
        dead = int(((counts == 0) & (counts.sum(axis=1, keepdims=True) > 0))[:, : self.experts].sum())
        level = "ok" if self.settling else "fault"
        rows = [("worst layer", f"{cv[worst]:.1f}×", f"floor · L{worst}"), ("dead experts", str(dead), "of them all")]
        return {
            "settling": self.settling,
            "sentence": {"lead": f"Step {step} in words.", "rest": f"Layer {worst} leans.", "level": level},
            "tiles": [
                {"label": label, "value": value, "unit": unit, "context": "", "level": level}
                for label, value, unit in rows
            ],
        }

    def frame(self, at_step: int | None = None) -> tuple[str, bytes]:
        """(entity tag, frame) of the newest step or of one in the past."""
        step = self.step() if at_step is None else at_step
        counts, bias = self.counts(step), self.bias(step)
        history = np.array([self.cv_floor(self.counts(step - 63 + column)) for column in range(64)]).T
        dead = (counts == 0) & (counts.sum(axis=1, keepdims=True) > 0)
        dead[:, self.experts] = False
        cv = self.cv_floor(counts)
        judged = self.levels(cv, dead)
        lag = np.random.default_rng(3).normal(0.05, 0.1, self.layers)
        if self.layers > 12:
            lag[12] = -0.6
        at_s = self.started + (step - self.first_step) * self.seconds_a_step
        body = pack(
            "experts",
            {
                **self.rank_load(counts),
                "counts": ("u4", counts),
                "bias": ("f4", bias),
                "delta_bias": ("f4", bias - self.bias(step - 1)),
                "cv_floor": ("f4", cv),
                "mean_floor": ("f4", cv),
                "lag1": ("f4", lag),
                "dead": ("u1", dead * (1 if self.settling else 2)),
                **judged,
                "history": ("f4", history),
            },
            run=self.run,
            attempt=2,
            step=step,
            at_s=at_s,
            age_s=max(time.time() - at_s, 0.0),
            layers=self.layers,
            experts=self.experts,
            slots=self.slots,
            top_k=1,
            tokens=self.tokens,
            floor_cv=self.floor(),
            rules=RULES,
            stale=self.stopped_at is not None,
            simulated=self.simulated,
            **self.words(step),
        )
        # as the server's tag: what is stale has another one, or a page that has this step never hears of it
        going = "stopped" if self.stopped_at is not None else "going"
        return f'"{self.run}-{self.layers}-{self.expert_parallel}-{step}-{going}"', body

    def levels(self, cv: NDArray[np.float64], dead: NDArray[np.bool_]) -> dict[str, tuple[str, NDArray[Any]]]:
        """What the alarms name: nothing while the run settles."""
        far = np.nan_to_num(cv)
        uneven = (far >= 1.5).astype(np.uint8) + (far >= 4.0)
        swings, skips = np.zeros_like(uneven), np.zeros_like(uneven)
        swings[12:13], skips[2:3] = 2, 1
        found = {"uneven": uneven, "swinging": swings, "skipping": skips, "skewed": uneven}
        found["level"] = np.maximum.reduce([*found.values(), dead.any(axis=1).astype(np.uint8)])
        return {name: ("u1", values * (not self.settling)) for name, values in found.items()}

    def rank_load(self, counts: NDArray[np.int64]) -> dict[str, tuple[str, NDArray[Any]]]:
        """What each expert-parallel rank carries of its layer's mean; nothing where there is one rank."""
        if self.expert_parallel == 1:
            return {}
        each = counts[:, : self.experts].reshape(self.layers, self.expert_parallel, -1).sum(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"rank_load": ("f4", each / each.mean(axis=1, keepdims=True))}

    def layers_over_time(self, columns: int = 256, steps: int | None = None) -> tuple[str, bytes]:
        """Every layer over the last steps; few different ones, so that a large model stays quick to invent."""
        last = self.step()
        found = np.unique(np.linspace(last - (steps or 1200), last, columns).round())
        pool = np.array([self.cv_floor(self.counts(last - back)) for back in range(12)])
        cv = pool[(found.astype(int) * 7) % 12].T * np.where(found < last - 300, 0.7, 1.0)
        skips = np.zeros_like(cv)
        skips[2] = 17 / (self.tokens + 17)
        arrays = {
            "cv_floor": cv,
            "skip_share": skips,
            "worst": np.nanmax(cv, axis=0),
            "middle": np.nanmedian(cv, axis=0),
        }
        at_s = self.started + (found - self.first_step) * self.seconds_a_step
        body = pack(
            "layers",
            {name: ("f4", values) for name, values in arrays.items()} | {"steps": ("f8", found), "at_s": ("f8", at_s)},
            run=self.run,
            layers=self.layers,
            step=last,
            at_s=float(at_s[-1]),
            first_step=int(found[0]),
            rules=RULES,
            marks=[
                {
                    "kind": "restart",
                    "column": len(found) // 4,
                    "step": int(found[len(found) // 4]),
                    "label": "attempt 2",
                }
            ],
        )
        return f'"{self.run}-layers-{last}-{steps}"', body

    def swings(self, at_step: int | None = None) -> tuple[str, bytes]:
        """Autocorrelation by lag: chance everywhere, a swing of 2.6 steps in layer 12, nothing known of layer 9."""
        step = self.step() if at_step is None else at_step
        found = np.random.default_rng(4).normal(0, 0.03, (self.layers, 32))
        if self.layers > 12:
            found[12] = np.cos(2 * np.pi * np.arange(1, 33) / 2.6) * np.linspace(0.9, 0.4, 32)
        if self.layers > 9:
            found[9] = np.nan
        arrays = {"autocorrelation": ("f4", found), "period": ("f4", np.full(self.layers, 2.6))}
        head = {"run": self.run, "layers": self.layers, "experts": self.experts, "steps": 64}
        return f'"{self.run}-swings-{step}"', pack("swings", arrays, step=step, at_s=time.time(), **head)

    def raster(
        self, layer: int, columns: int = 256, last: int | None = None, steps_back: int = 1200
    ) -> tuple[str, bytes]:
        """One layer over `columns` samples with a restart a quarter in and a change of data near the end."""
        last = self.step() if last is None else min(last, self.step())
        steps = np.unique(np.linspace(last - steps_back, last, columns).round())
        columns = len(steps)
        counts = np.array([self.counts_of(layer, int(step)) for step in steps]).T
        at_s = self.started + (steps - self.first_step) * self.seconds_a_step
        at_s[: columns // 4] -= 172.0
        share = counts / np.maximum(counts.sum(axis=0), 1)
        bias = np.array([self.bias(int(step))[layer] for step in steps]).T[: self.experts]
        cv = (counts.std(axis=0) / np.maximum(counts.mean(axis=0), 1e-9)) / self.floor()
        change = int(np.searchsorted(steps, self.first_step - 300))
        marks: list[dict[str, Any]] = [{"kind": "restart", "column": columns // 4, "label": "restart 2, 2 m 52 s"}]
        if 0 < change < columns:
            marks.append({"kind": "data", "column": change, "label": "data mix 3 → 4"})
        body = pack(
            "raster",
            {
                "share": ("f4", share),
                "cv": ("f4", cv),
                "bias": ("f4", bias),
                "skip_share": ("f4", np.full(columns, 17 / (self.tokens + 17) if layer == 2 else 0.0)),
                "steps": ("f8", steps),
                "at_s": ("f8", at_s),
            },
            run=self.run,
            layer=layer,
            experts=self.experts,
            floor_cv=self.floor(),
            rules=RULES,
            marks=marks,
            step=last,
            at_s=float(at_s[-1]),
        )
        return f'"{self.run}-{layer}-{last}-{columns}"', body

    def counts_of(self, layer: int, step: int) -> NDArray[np.int64]:
        lean = self.share(layer, step)
        return np.asarray(np.random.default_rng([layer, step]).multinomial(self.tokens, lean / lean.sum()))


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
