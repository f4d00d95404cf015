"""Writes docs/pictures/statistics/*.svg: each statistic of docs/experts.md over really trained runs of the corpus.

A picture shows one statistic over steps, of a healthy run and of one into which something was planted at the marked
step, with the alarm's threshold where there is one. Plain SVG, so that a change of a line is a change of a line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import corpus
from controlplane.rules import experts as x
from controlplane.rules.expert_controller import identify
from controlplane.rules.expert_ranks import rank_loads, skew
from controlplane.rules.expert_swings import autocorrelations

FOLDER = Path("docs/pictures/statistics")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 150, 44, 8, 20, 24
SEED, STEPS, WINDOW, EVERY = 5, 1100, 64, 4
EXPERTS, RANKS, SWING_LAGS = corpus.SHAPE.num_experts, corpus.RANKS, 16
HEALTHY_COLOUR, PLANTED_COLOUR, QUIET = "#2f8f83", "#c8553d", "#8a8f98"
Run = Mapping[str, NDArray[Any]]
Measure = Callable[[Run], Any]
"""One value for a window of a run: the worst layer's, or whatever the picture's title says."""


@dataclass(frozen=True)
class Picture:
    """What one picture shows."""

    name: str
    title: str
    scenario: str
    measure: Measure
    threshold: float | None = None


def _found(run: Run) -> x.LayerStatistics:
    return x.layer_statistics(run["counts"], run["bias"], EXPERTS, 1)


def _share(run: Run) -> NDArray[np.float64]:
    return _found(run).share


def _mean_max(name: str) -> Measure:
    return lambda run: getattr(_found(run), name).mean(axis=0).max()


def _mean_min(name: str) -> Measure:
    return lambda run: getattr(_found(run), name).mean(axis=0).min()


def _effect(run: Run) -> NDArray[np.float64]:
    ones = np.ones(run["squares"].shape)
    counts = run["counts"][..., :EXPERTS]
    return x.pooled_design_effect(counts, run["squares"], ones * (RANKS - 1), ones * RANKS, 1)


def _floors(run: Run) -> NDArray[np.float64]:
    return (_found(run).cv_floor.mean(axis=0) / np.sqrt(_effect(run))).max()


def _skew(run: Run) -> NDArray[np.float64]:
    return skew(rank_loads(run["counts"].sum(axis=0), EXPERTS, corpus.EXPERT_PARALLEL)).max()


def _swing(run: Run) -> NDArray[np.float64]:
    found, lasting = _found(run), x.layer_statistics(run["counts"].sum(axis=0), run["bias"][-1], EXPERTS, 1)
    passing = np.sqrt(np.clip(1 - (lasting.cv / found.cv.mean(axis=0)) ** 2, 0, 1))
    floors = found.cv_floor.mean(axis=0) / np.sqrt(_effect(run))
    return (-autocorrelations(found.share, SWING_LAGS).min(axis=-1) * floors * passing).max()


def _bias_spread(run: Run) -> Any:
    return np.ptp(run["bias"][-1, :, :EXPERTS], axis=1).max()


def _signs(measure: Callable[[Any, int], NDArray[np.float64]], worst: Callable[[Any], Any]) -> Measure:
    return lambda run: worst(measure(run["bias"], EXPERTS))


def _loads(measure: Callable[[Any], NDArray[np.float64]], worst: Callable[[Any], Any]) -> Measure:
    return lambda run: worst(measure(_share(run)))


def _gain(run: Run) -> Any:
    return np.median(identify(run["counts"], run["bias"], EXPERTS).sign_gain)


PICTURES = (
    Picture("share", "largest share × E of any expert", "dead", lambda run: _share(run)[-1].max() * EXPERTS),
    Picture("maxvio", "MaxVio, worst layer", "no-balancing", _mean_max("maxvio")),
    Picture("avgvio", "AvgVio, worst layer", "no-balancing", _mean_max("avgvio")),
    Picture("cv", "CV, worst layer", "inverted", _mean_max("cv"), 0.2),
    Picture("entropy", "H ÷ ln E, worst layer", "inverted", _mean_min("entropy")),
    Picture("effective", "effective experts, worst layer", "inverted", _mean_min("effective"), 0.9),
    Picture("gini", "Gini, worst layer", "frozen", _mean_max("gini")),
    Picture("min-load", "min load, worst layer", "dead", _mean_min("min_load")),
    Picture("dead", "dead experts, all layers", "dead", lambda run: x.dead_experts(run["counts"], EXPERTS).sum()),
    Picture("skip", "skip share, worst layer", "skip-slot", _mean_max("skip_share"), 0.001),
    Picture("design-effect", "design effect, median layer", "data-mix", lambda run: np.median(_effect(run))),
    Picture("floors", "CV in sampling floors, worst layer", "frozen", _floors, 1.5),
    Picture("bias-spread", "bias spread, widest layer", "zeroed-at-resume", _bias_spread),
    Picture("bias-change", "mean |Δb|, most moved layer", "frozen", _signs(x.bias_change, np.max)),
    Picture(
        "same-direction", "same direction, worst layer", "inverted", _signs(x.same_direction_share, np.nanmax), 0.9
    ),
    Picture("sign-flips", "sign flips of Δb, worst layer", "too-fast", _signs(x.sign_flip_rate, np.nanmax)),
    Picture("churn", "churn, worst layer", "too-fast", _loads(x.churn, np.max)),
    Picture("lag1", "lag-1 autocorrelation, worst layer", "too-fast", _loads(x.lag1_autocorrelation, np.nanmin), -0.25),
    Picture("swing", "slow swing in floors, worst layer", "too-fast-adamw", _swing, 1.2),
    Picture("gain", "gain u of Δb = −u·sign(e), median layer", "inverted", _gain, 0.0),
    Picture("skew", "fullest ÷ mean expert-parallel rank, worst layer", "skewed-ranks", _skew, 1.1),
    Picture("mean-maxvio", "mean MaxVio over layers", "data-mix", lambda run: _found(run).maxvio[-5:].mean()),
)


_HEAD = '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" font-family="sans-serif" font-size="11">'
_TITLE = '<text x="{}" y="13" fill="#20242a">{} · <tspan fill="{}">healthy</tspan> · <tspan fill="{}">{}</tspan></text>'


def series(run: Run, measure: Measure) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The measure over windows that slide along a run: steps, values."""
    length = min(len(run["step"]), STEPS)
    ends = np.arange(WINDOW, length + 1, EVERY)
    values = []
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for end in ends:
            values.append(float(measure({name: array[end - WINDOW : end] for name, array in run.items()})))
    return run["step"][ends - 1], np.array(values)


def drawn(picture: Picture, healthy: Run, planted: Run, onset: int) -> str:
    """The picture as SVG."""
    lines = [(HEALTHY_COLOUR, *series(healthy, picture.measure)), (PLANTED_COLOUR, *series(planted, picture.measure))]
    known = np.concatenate(
        [values[np.isfinite(values)] for _, _, values in lines] + [np.atleast_1d(picture.threshold or 0.0)]
    )
    low, high = float(min(known.min(), 0.0)), float(known.max()) or 1.0

    def at(step: float, value: float) -> str:
        right = LEFT + (WIDTH - LEFT - RIGHT) * step / STEPS
        return f"{right:.1f},{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low):.1f}"

    parts = [
        _HEAD.format(WIDTH, HEIGHT),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _TITLE.format(LEFT, picture.title, HEALTHY_COLOUR, PLANTED_COLOUR, picture.scenario),
    ]
    for value in (low, high):
        y = at(0, value).split(",")[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#e3e5e8"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{float(y) + 4:.1f}" text-anchor="end" fill="{QUIET}">{value:.3g}</text>')
    if picture.threshold is not None:
        parts.append(_line([at(0, picture.threshold), at(STEPS, picture.threshold)], QUIET, dashed=True))
    if onset:
        parts.append(_line([at(onset, low), at(onset, high)], PLANTED_COLOUR, dashed=True))
    for step in (200, 600, 1000):
        x_at = at(step, low).split(",")[0]
        parts.append(f'<text x="{x_at}" y="{HEIGHT - 8}" text-anchor="middle" fill="{QUIET}">step {step}</text>')
    for colour, steps, values in lines:
        for piece in np.split(np.arange(len(steps)), np.flatnonzero(~np.isfinite(values))):
            points = [at(steps[index], values[index]) for index in piece if np.isfinite(values[index])]
            parts.append(_line(points, colour) if len(points) > 1 else "")
    return "\n".join([*filter(None, parts), "</svg>", ""])


def _line(points: list[str], colour: str, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="4 3"' if dashed else ' stroke-width="1.4"'
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"{dashes}/>'


def main() -> int:
    """Draws every picture; 2 if a run is missing."""
    runs = {recipe.scenario: recipe for recipe in corpus.recipes() if recipe.seed == SEED and recipe.sequences == 2}
    missing = [recipe.name for recipe in runs.values() if not corpus.path_of(recipe).exists()]
    if missing:
        print(f"not there: {', '.join(missing)}; make corpus", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    loaded = {scenario: corpus.load(recipe) for scenario, recipe in runs.items()}
    for picture in PICTURES:
        text = drawn(picture, loaded["healthy"], loaded[picture.scenario], runs[picture.scenario].onset)
        (FOLDER / f"{picture.name}.svg").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
