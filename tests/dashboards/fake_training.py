"""Shape-conforming invented data for the live pages: a run's experts, a function of the step. A test double only.

The story is fixed: layer 23 leans on expert 7 since a change of data, layer 31 has dead experts, layer 12 swings, 9
says nothing, layer 2 uses its skip slot.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fake_fleet import pack
from numpy.typing import NDArray

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
    swing_steps: float = 2.6

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
            lean += 0.09 * np.cos(2 * np.pi * step / self.swing_steps + np.arange(self.experts))
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
        """Autocorrelation by lag: chance everywhere, a swing in layer 12, nothing known of layer 9."""
        step = self.step() if at_step is None else at_step
        found = np.random.default_rng(4).normal(0, 0.03, (self.layers, 32))
        if self.layers > 12:
            found[12] = np.cos(2 * np.pi * np.arange(1, 33) / self.swing_steps) * np.linspace(0.9, 0.4, 32)
        if self.layers > 9:
            found[9] = np.nan
        swings = (np.arange(self.layers) == 12) * (0 if self.settling else 2)
        arrays: dict[str, tuple[str, NDArray[Any]]] = {
            "autocorrelation": ("f4", found),
            "period": ("f4", np.full(self.layers, self.swing_steps)),
            "swinging": ("u1", swings),
        }
        head = {"run": self.run, "layers": self.layers, "experts": self.experts, "steps": 64}
        head |= {"judged": not self.settling}
        tag = f'"{self.run}-{self.layers}-{self.swing_steps}-{self.settling}-swings-{step}"'
        return tag, pack("swings", arrays, step=step, at_s=time.time(), **head)

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
