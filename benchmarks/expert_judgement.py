"""How well the expert alarms judge: the labelled corpus replayed through the very rules that watch live runs.

Every eighth step the last 64 records of the attempt are judged, as the server does. Checks of one rule that are at most
64 steps apart are one episode, all layers together. Healthy are the healthy runs and what planted runs did before their
plant (runs of one seed did the same: it counts once); of these, the steps behind checks that judged a whole window past
the warm-up. A false alarm is an episode of any alarm that begins there. A planted run is found when an episode of its
own alarm begins after the plant. Thresholds were chosen on the runs of two seeds (`make bench NAME=expert-judgement
ARGS=--choose` shows how); what is printed and written into docs/experts.md are the runs of the other two. `make corpus`
trains what is replayed here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import corpus
from benchmarks.corpus import CHOOSING, EXPERT_PARALLEL, RANKS, SHAPE, Recipe
from controlplane.rules import alarms
from controlplane.rules import book as rule_book
from controlplane.rules.book import RuleBook
from controlplane.rules.expert_marks import RECENT_STEPS, data_mix_shifts
from controlplane.rules.expert_window import TREND_STEPS, ExpertWindow, Resumed
from controlplane.rules.experts import layer_statistics

PAGE = Path("docs/experts.md")
BEGIN, END = "<!-- judgement: begin -->\n", "<!-- judgement: end -->"
WINDOW, EVERY, EPISODE_GAP = 64, 8, 64
MARK = "data-mix"
WANTED = {
    "no-balancing": "expert-imbalance",
    "too-fast": "expert-oscillation",
    "too-fast-adamw": "expert-oscillation",
    "too-slow": "expert-imbalance",
    "inverted": "expert-runaway",
    "frozen": "expert-bias-frozen",
    "dead": "expert-dead",
    "zeroed-at-resume": "expert-bias-lost",
    "data-mix": MARK,
    "skewed-ranks": "expert-parallel-skew",
    "skip-slot": "expert-skip",
}
"""The alarm that each scenario is for; a change of the data is a mark on the page and no alarm. "fast-adamw" is for
none: three times the healthy rate, at which some runs swing and others do not; its row shows where the alarm begins."""
SWEPT = {
    "expert-imbalance": {
        "cv_floor": (1.2, 1.35, 1.5, 1.75, 2.0),
        "effective": (0.95, 0.9, 0.85),
        "cv": (0.1, 0.2, 0.3),
    },
    "expert-oscillation": {
        "lag1": (-0.15, -0.2, -0.25, -0.3, -0.35),
        "worse_lag1": (-0.35, -0.4, -0.45, -0.5),
        "slow": (0.8, 1.0, 1.2, 1.4, 1.6),
        "slow_lag": (-0.15, -0.2, -0.25),
    },
    "expert-dead": {"patience_steps": (16, 32, 64)},
    "expert-runaway": {"least_r2": (0.1, 0.2, 0.3), "cv_floor": (3.0, 4.0, 5.0)},
    "expert-bias-frozen": {"cv_floor": (1.2, 1.5, 2.0)},
    "expert-parallel-skew": {"skew": (1.05, 1.1, 1.15, 1.2)},
    "expert-skip": {"share": (0.0001, 0.001, 0.01)},
}
"""What `--choose` tries, one threshold at a time."""


@dataclass
class Judged:
    """One run replayed: the steps at which each rule fired, at each check."""

    recipe: Recipe
    fired: dict[str, list[int]] = field(default_factory=dict)
    checks: list[int] = field(default_factory=list)
    """steps at which a whole window past the warm-up was judged"""
    before: str = ""
    """digest of what was recorded before the plant: runs of one seed may have trained the same until then"""

    @property
    def healthy_until(self) -> float:
        """The step at which nothing is healthy any more."""
        return math.inf if self.recipe.scenario == "healthy" else self.recipe.onset

    def begins(self, rule: str) -> list[int]:
        """The steps at which it began to fire."""
        steps = self.fired.get(rule, [])
        return [step for before, step in zip([-math.inf, *steps], steps, strict=False) if step - before > EPISODE_GAP]

    def first(self, rule: str) -> int | None:
        """Where an episode of it first began from the plant on."""
        return next((step for step in self.begins(rule) if step >= self.recipe.onset), None)

    def false(self, rule: str) -> int:
        """Episodes of it that began while nothing was wrong."""
        return sum(step < self.healthy_until for step in self.begins(rule))

    def healthy_steps(self) -> int:
        """Steps judged of a healthy run. Those before a plant are nearly the same seed's healthy run again: a false
        alarm among them counts, but they are no steps more."""
        return EVERY * len(self.checks) if self.recipe.scenario == "healthy" else 0


def replay(recipe: Recipe, book: RuleBook) -> Judged:
    """Judges a run as the server would have while it trained."""
    run = corpus.load(recipe)
    clean = run["step"] < recipe.onset
    before = hashlib.sha256(run["counts"][clean].tobytes() + run["bias"][clean].tobytes()).hexdigest()
    judged, warmed = Judged(recipe, before=before), book["expert-imbalance"]
    for attempt in np.unique(run["attempt"]):
        where = np.flatnonzero(run["attempt"] == attempt)
        cv = _cv(run, where)
        for end in range(EVERY, len(where) + 1, EVERY):
            window = _window(run, where[max(0, end - WINDOW) : end], int(where[0]))
            early = end - TREND_STEPS
            window = replace(window, cv_before=cv[early - WINDOW : early].mean(axis=0)) if early >= WINDOW else window
            if window.last(warmed, WINDOW) is not None:
                judged.checks.append(int(window.steps[-1]))
            for finding in alarms.judge(window, book).findings:
                judged.fired.setdefault(finding.rule, []).append(int(window.steps[-1]))
    with np.errstate(invalid="ignore"):
        maxvio = layer_statistics(run["counts"], run["bias"], SHAPE.num_experts, 1).maxvio.mean(axis=1)
    warm = run["step"] > warmed.thresholds["warmup_steps"]
    # a mark stands where the load rose and is known once its window of steps is whole
    steps = run["step"][warm]
    marks = [int(steps[min(index + RECENT_STEPS - 1, len(steps) - 1)]) for index in data_mix_shifts(maxvio[warm])]
    if marks:
        judged.fired[MARK] = marks
    return judged


def _cv(run: Mapping[str, NDArray[Any]], cut: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # a layer without tokens
        return layer_statistics(run["counts"][cut], run["bias"][cut], SHAPE.num_experts, 1).cv


def _window(run: Mapping[str, NDArray[Any]], cut: NDArray[np.int64], first: int) -> ExpertWindow:
    squares = run["squares"][cut].astype(np.float64)
    spread = np.stack([squares, np.full(squares.shape, RANKS - 1.0), np.full(squares.shape, float(RANKS))])
    attempt, before = int(run["attempt"][cut[-1]]), run["bias"][first - 1] if first else None
    begun = run["bias"][first]
    heads = int(run["start_bias"][cut[-1]]), int(run["checkpoint_bias"][cut[-1]])
    return ExpertWindow(
        run_id="run",
        run_name="corpus",
        attempt_no=attempt,
        steps=run["step"][cut].astype(np.int64),
        at_s=run["step"][cut].astype(np.float64),
        counts=run["counts"][cut].astype(np.uint32),
        bias=run["bias"][cut],
        experts=SHAPE.num_experts,
        top_k=1,
        spread=spread,
        expert_parallel=EXPERT_PARALLEL,
        resumed=Resumed(int(run["step"][first]), *heads, before, begun) if attempt > 1 else None,
    )


def poisson_upper(count: int, confidence: float = 0.95) -> float:
    """The mean of a Poisson count at which so few or fewer have the probability 1 − confidence, by bisection."""
    low, high = 0.0, 10.0 + 3.0 * count
    for _ in range(80):
        mean = (low + high) / 2
        below = sum(
            math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1)) if mean else 1.0 for k in range(count + 1)
        )
        low, high = (mean, high) if below > 1 - confidence else (low, mean)
    return high


def binomial_lower(hits: int, tries: int, confidence: float = 0.95) -> float:
    """The chance at which so many or more hits of so many tries have the probability 1 − confidence, by bisection
    (Clopper and Pearson 1934, one-sided); 0 without a hit."""
    low, high = 0.0, 1.0
    for _ in range(80):
        chance = (low + high) / 2
        above = sum(math.comb(tries, k) * chance**k * (1 - chance) ** (tries - k) for k in range(hits, tries + 1))
        low, high = (low, chance) if above > 1 - confidence else (chance, high)
    return low


@dataclass(frozen=True)
class Score:
    """What became of a set of runs."""

    found: int
    planted: int
    false_alarms: int
    false_marks: int
    healthy_steps: int
    delays: tuple[int, ...]

    @property
    def recall(self) -> float:
        return self.found / self.planted if self.planted else math.nan

    @property
    def recall_lower(self) -> float:
        """Its 95 % lower bound."""
        return binomial_lower(self.found, self.planted)

    @property
    def rate(self) -> float:
        """False alarms per 10,000 healthy steps."""
        return 10_000 * self.false_alarms / self.healthy_steps

    @property
    def upper(self) -> float:
        """Its 95 % upper bound."""
        return 10_000 * poisson_upper(self.false_alarms) / self.healthy_steps


def score(runs: Iterable[Judged], book: RuleBook) -> Score:
    """Recall over the planted runs, false alarms over what was healthy."""
    found, planted, alarmed, marks, steps, delays, seen = 0, 0, 0, 0, 0, [], set()
    for run in runs:
        same = run.recipe.onset > 0 and run.before in seen
        seen.add(run.before)
        if not same:
            alarmed += sum(run.false(rule) for rule in alarms.RULES)
            marks += run.false(MARK)
            steps += run.healthy_steps()
        wanted = WANTED.get(run.recipe.scenario)
        if wanted is None:
            continue
        planted += 1
        first = run.first(wanted)
        if first is not None:
            found += 1
            delays.append(first - max(run.recipe.onset, int(book["expert-imbalance"].thresholds["warmup_steps"])))
    return Score(found, planted, alarmed, marks, max(steps, 1), tuple(delays))


def table(runs: list[Judged]) -> str:
    """The confusion table as Markdown: in how many runs of a scenario each alarm began to fire after the plant."""
    rules = [*alarms.RULES, MARK]
    heads = [rule.removeprefix("expert-") for rule in rules if rule != "route-mismatch"]
    lines = [f"| planted | runs | {' | '.join(heads)} | steps to detect |", "|---" * (len(heads) + 3) + "|"]
    for scenario in corpus.SCENARIOS:
        of = [run for run in runs if run.recipe.scenario == scenario]
        cells = []
        for rule in rules:
            if rule == "route-mismatch":
                continue
            count = sum(run.first(rule) is not None for run in of)
            text = str(count) if count else "·"
            cells.append(f"**{text}**" if WANTED.get(scenario) == rule else text)
        lines.append(f"| {scenario} | {len(of)} | {' | '.join(cells)} | {_delays(of, WANTED.get(scenario))} |")
    return "\n".join(lines)


def _delays(runs: list[Judged], rule: str | None) -> str:
    if rule is None:
        return "–"
    firsts = [(run.first(rule), run.recipe.onset) for run in runs]
    known = [first - (onset or 200) for first, onset in firsts if first is not None]
    return f"{min(known)} – {max(known)}" if known else "not found"


def choose(runs: list[Recipe]) -> None:
    """Prints what each threshold would do to the runs that thresholds are chosen on, the others as they stand."""
    whole = rule_book.load()
    tried = [(rule, name, value) for rule, names in SWEPT.items() for name, values in names.items() for value in values]
    with ProcessPoolExecutor() as pool:
        for rule, name, value in tried:
            changed = replace(whole[rule], thresholds={**whole[rule].thresholds, name: value})
            book = replace(whole, rules={**whole.rules, rule: changed})
            got = score(pool.map(partial(replay, book=book), runs, chunksize=4), book)
            mark = " (in force)" if whole[rule].thresholds[name] == value else ""
            print(
                f"{rule} {name} = {value}{mark}: recall {got.recall:.3f}, false alarms {got.false_alarms}", flush=True
            )


def lines_of(got: Score, chosen: Score) -> list[dict[str, Any]]:
    """The figures as JSON lines."""
    median = float(np.median(got.delays)) if got.delays else None
    shared = {"peer": "the runs that thresholds were chosen on"}
    return [
        {"name": "expert judgement: recall", "value": round(got.recall, 3), "unit": "of planted runs", "target": 0.95,
         "better": "higher", **shared, "peer_value": round(chosen.recall, 3), "runs": got.planted,
         "lower_95": round(got.recall_lower, 3)},
        {"name": "expert judgement: false alarms", "value": round(got.rate, 3), "unit": "per 10,000 healthy steps",
         "target": 1.0, "better": "lower", **shared, "peer_value": round(chosen.rate, 3), "episodes": got.false_alarms,
         "healthy_steps": got.healthy_steps, "upper_95": round(got.upper, 3), "false_marks": got.false_marks},
        {"name": "expert judgement: steps to detect, median", "value": median, "unit": "steps", "target": None,
         "better": "lower", **shared, "peer_value": float(np.median(chosen.delays)) if chosen.delays else None},
    ]  # fmt: skip


def write_page(runs: list[Judged], got: Score) -> None:
    """Puts the table and its summary between the page's marks."""
    seeds = sorted({run.recipe.seed for run in runs})
    summary = (
        f"Held-out seeds {', '.join(map(str, seeds))}: recall {got.found} of {got.planted} planted runs "
        f"({got.recall:.3f}, 95 % lower bound {got.recall_lower:.2f}); "
        f"{got.false_alarms} false alarm{'' if got.false_alarms == 1 else 's'} in "
        f"{got.healthy_steps:,} judged healthy steps, {got.rate:.2f} per 10,000 (95 % upper bound {got.upper:.2f}); "
        f"{got.false_marks} false data-mix marks."
    )
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    PAGE.write_text(f"{head}{BEGIN}{table(runs)}\n\n{summary}\n{END}{tail}", encoding="utf-8")


def main() -> int:
    """Prints the lines; 1 if a target is missed, 2 if the corpus is not there."""
    parser = argparse.ArgumentParser(prog="benchmarks.expert_judgement", description=__doc__.splitlines()[0])
    parser.add_argument("--choose", action="store_true", help="sweep thresholds over the runs they are chosen on")
    parser.add_argument("--part", action="store_true", help="judge what is there of a corpus that is not complete")
    given = parser.parse_args()
    wanted = corpus.recipes()
    there = [recipe for recipe in wanted if corpus.path_of(recipe).exists()]
    if len(there) < len(wanted) and not given.part:
        print(f"{len(wanted) - len(there)} of {len(wanted)} runs are not there: make corpus", file=sys.stderr)
        return 2
    if given.choose:
        choose([recipe for recipe in there if recipe.seed in CHOOSING])
        return 0
    book = rule_book.load()
    with ProcessPoolExecutor() as pool:
        runs = list(pool.map(partial(replay, book=book), there))
    held_out = [run for run in runs if run.recipe.seed not in CHOOSING]
    chosen = score([run for run in runs if run.recipe.seed in CHOOSING], book)
    got = score(held_out, book)
    for line in lines_of(got, chosen):
        print(json.dumps(line), flush=True)
    print(table(held_out), file=sys.stderr)
    if not given.part:
        write_page(held_out, got)
    return 0 if got.recall >= 0.95 and got.rate <= 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
