"""Predicted balance beside really trained balance: a run is recorded, its response fitted, other controllers replayed.

`make bench NAME=counterfactual`. For each seed the toy trains a prefix and goes on, recorded, under ZAYA1's AdamW; how
its load answers its bias is fitted to the record, every candidate of controlplane.simulate.balance is replayed, and
the toy is trained again from the same prefix, on the same batches, under the chosen ones: the best predicted, the best
of each other family, one that is predicted to swing, and none. The peer of each prediction is that training. The
fitted gain stands beside the gain that moving the biases of the frozen router shows. `ARGS=--page` writes
docs/counterfactual.md. Two processes, one thread each.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.counterfactual_page import write_page
from controlplane.rules.expert_response import Response, compare, fit_response, record_of
from controlplane.rules.experts import pooled_design_effect
from controlplane.simulate.balance import (
    Controller,
    Outcome,
    candidates,
    measure,
    rank_correlation,
    ranked,
    replay,
)
from jobs.zaya.config import ModelConfig, TrainConfig
from jobs.zaya.training.learner import Learner

MODEL = ModelConfig(
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_experts=8,
    moe_intermediate_size=16,
    router_hidden_size=16,
)
SEQUENCES, LENGTH = 8, 64
PREFIX, STEPS, JUDGED_FROM = 300, 300, 100
SEEDS = (2, 3)
RECORDED = Controller("adamw", 0.005)
GAIN_BATCHES, GAIN_STEP = 10, 0.005
SWINGING = -0.25
Arrays = dict[str, NDArray[Any]]
Line = dict[str, Any]


@dataclass(frozen=True)
class Seed:
    """What one seed gave: the fit, and predicted and measured outcomes by what they were chosen for."""

    seed: int
    response: Response
    r2_by_model: dict[str, list[float]]
    frozen_gain: list[float]
    recorded: Outcome
    predicted: dict[str, Outcome]
    measured: dict[str, Outcome]


def learner(seed: int, controller: Controller) -> Learner:
    """The toy under a controller, before its first step."""
    config = TrainConfig(
        steps=PREFIX + STEPS,
        sequences=SEQUENCES,
        length=LENGTH,
        seed=seed,
        learning_rate=1e-3,
        balancing=controller.name,
        balancing_rate=controller.rate,
        balancing_kp=controller.kp,
        balancing_ki=controller.ki,
        balancing_kd=controller.kd,
    )
    return Learner(MODEL, config, 0, 1)


def train(one: Learner, first: int, last: int) -> Arrays:
    """Completes steps first..last. Counts and biases [W, L, S] as a probe records them, and `squares` [W, L]: the
    spread between the sequences of a step, which stand for ranks."""
    chosen: list[torch.Tensor] = []
    hooks = [router.register_forward_hook(lambda _m, _a, out: chosen.append(out[0])) for router in one.routers]
    kept: dict[str, list[NDArray[Any]]] = {"counts": [], "bias": [], "squares": []}
    for number in range(first, last + 1):
        chosen.clear()
        one.step(number, number)
        kept["counts"].append(one.counts().numpy())
        kept["bias"].append(one.balancer.biases.numpy().copy())
        kept["squares"].append(_squares(chosen))
        one.reset_counts()
    for hook in hooks:
        hook.remove()
    return {name: np.array(values) for name, values in kept.items()}


def _squares(chosen: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """[L] squared distances of each sequence's counts from their mean, summed over sequences and experts."""
    picks = torch.stack(list(chosen)).view(len(chosen), SEQUENCES, LENGTH)
    counts = torch.nn.functional.one_hot(picks, MODEL.num_experts + 1).sum(dim=2)[..., :-1].double()
    return np.asarray((counts - counts.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2)).numpy())


def design_of(record: Arrays) -> NDArray[np.float64]:
    """The design effect [L] over the record."""
    shape = record["squares"].shape
    return pooled_design_effect(
        record["counts"][..., :-1], record["squares"], np.full(shape, SEQUENCES - 1), np.full(shape, SEQUENCES), 1
    )


def frozen_gain(one: Learner) -> list[float]:
    """The gain [L] of a router at rest, mean of its experts: Δp ÷ (p·(1 − p)·Δb), the bias of an expert moved
    up and down in all layers at once."""
    batches = [one.rows.batch(10_000_000 + index, 0, 1, SEQUENCES) for index in range(GAIN_BATCHES)]

    def shares(expert: int, by: float) -> NDArray[np.float64]:
        one.balancer.biases[:, expert] += by
        one.reset_counts()
        for batch in batches:
            one.model(batch[:, :-1])
        one.balancer.biases[:, expert] -= by
        counts = one.counts().double().numpy()[:, :-1]
        one.reset_counts()
        return np.asarray(counts[:, expert] / counts.sum(axis=1))

    found = []
    kept = one.balancer.biases.clone()
    for expert in range(MODEL.num_experts):
        up, down = shares(expert, GAIN_STEP), shares(expert, -GAIN_STEP)
        middle = (up + down) / 2
        found.append((up - down) / (2 * GAIN_STEP * np.maximum(middle * (1 - middle), 1e-3)))
    # to the last bit: the run goes on from here
    one.balancer.biases.copy_(kept)
    return [float(value) for value in np.mean(found, axis=0)]


def chosen_of(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """Which predictions are put to the test, by why."""
    order = ranked(outcomes)
    found = {"proposed": order[0]}
    for family in ("adamw", "sign", "pi"):
        best = next(one for one in order if one.controller.name == family)
        if best is not order[0]:
            found[f"best {family}"] = best
    swinging = [one for one in order if one.lag1 < SWINGING]
    found["swinging"] = swinging[-1] if swinging else order[-1]
    return found | {"none": next(one for one in order if one.controller.name == "none")}


def seen(counts: NDArray[Any], response: Response, controller: Controller) -> Outcome:
    """What counts [W, L, S] came to, of the layers of which something was predicted."""
    return measure(counts[:, response.known(), :-1].astype(np.float64), 1, JUDGED_FROM, controller)


def one_seed(seed: int) -> Seed:
    """Records, fits, replays, trains again."""
    torch.set_num_threads(1)
    base = learner(seed, RECORDED)
    prefix = train(base, 1, PREFIX)
    state = copy.deepcopy(base.state())
    before = frozen_gain(base)
    raw = train(base, PREFIX + 1, PREFIX + STEPS)
    with np.errstate(invalid="ignore"):  # an answer that turned its sign has no mean
        gain = np.sqrt(np.array(before) * np.array(frozen_gain(base)))
    joined = {name: np.concatenate([prefix[name][-1:], raw[name]]) for name in ("counts", "bias")}
    record = record_of(joined["counts"], joined["bias"], MODEL.num_experts, 1)
    design = design_of(raw)
    response = fit_response(record, design)
    tried = candidates(response, MODEL.num_experts)
    predicted = chosen_of([replay(record, response, one, judged_from=JUDGED_FROM) for one in tried])
    measured = {}
    for why, outcome in predicted.items():
        print(f"seed {seed}: trains {why}, {outcome.controller.label()}", file=sys.stderr, flush=True)
        again = learner(seed, outcome.controller)
        again.load_weights(state)
        again.optimizer.load_state_dict(state["optimizer"])
        counts = train(again, PREFIX + 1, PREFIX + STEPS)["counts"]
        measured[why] = seen(counts, response, outcome.controller)
    recorded = seen(raw["counts"], response, RECORDED)
    r2 = {name: [float(value) for value in one.r2_step] for name, one in compare(record, design).items()}
    return Seed(seed, response, r2, [float(value) for value in gain], recorded, predicted, measured)


def lines_of(found: Sequence[Seed]) -> list[Line]:
    """A line a prediction, then what they come to together."""
    pairs = {
        one.seed: {why: (told.cv_floor, one.measured[why].cv_floor) for why, told in one.predicted.items()}
        for one in found
    }
    order = [rank_correlation(*zip(*each.values(), strict=True)) for each in pairs.values()]
    off = {(seed, why): told / seen for seed, each in pairs.items() for why, (told, seen) in each.items()}
    none = [ratio for (_, why), ratio in off.items() if why == "none"]
    steered = [ratio for (_, why), ratio in off.items() if why != "none"]
    swings = [one.measured["swinging"].lag1 for one in found]
    better = [one.measured["proposed"].cv_floor / one.recorded.cv_floor for one in found]
    known = [one.response.known() for one in found]
    gains = np.concatenate(
        [one.response.gain[sure] / np.array(one.frozen_gain)[sure] for one, sure in zip(found, known, strict=True)]
    )
    return [
        *(_prediction(one, why) for one in found for why in one.predicted),
        _summary("rank correlation of predicted and trained CV, mean of seeds", np.mean(order), 0.7, "higher", order),
        _summary("predicted ÷ trained CV, steered, typical factor", _typical(steered), 1.15, "lower", steered),
        _summary("predicted ÷ trained CV, none, typical factor", _typical(none), None, "lower", none),
        _summary("lag-1 as trained of what was predicted to swing", np.median(swings), SWINGING, "lower", swings),
        _summary("trained CV under the proposed gains ÷ recorded CV, mean", np.mean(better), 1.0, "lower", better),
        _summary("fitted ÷ frozen router's gain, typical factor", _typical(gains), 2.0, "lower", gains),
    ]


def _typical(ratios: Sequence[float] | NDArray[np.float64]) -> float:
    """The median factor by which ratios are off 1, whichever way; of those that are known."""
    return float(np.exp(np.nanmedian(np.abs(np.log(ratios)))))


def _prediction(one: Seed, why: str) -> Line:
    told, seen = one.predicted[why], one.measured[why]
    return {
        "name": f"CV, seed {one.seed}, {why}: {told.controller.label()}",
        "value": round(told.cv_floor, 3),
        "unit": "floors",
        "target": None,
        "better": "lower",
        "peer": "measured by training",
        "peer_value": round(seen.cv_floor, 3),
        "interval": [round(told.cv_low, 3), round(told.cv_high, 3)],
        "maxvio": [round(told.maxvio, 3), round(seen.maxvio, 3)],
        "lag1": [round(told.lag1, 3), round(seen.lag1, 3)],
        "seed": one.seed,
        "why": why,
        "controller": told.controller.label(),
        "settle_steps": [round(told.settle_steps), round(seen.settle_steps)],
        "recorded_cv": round(one.recorded.cv_floor, 3),
    }


def _summary(name: str, value: Any, target: float | None, better: str, each: Any) -> Line:
    return {
        "name": name,
        "value": round(float(value), 3),
        "unit": "1",
        "target": target,
        "better": better,
        "peer": None,
        "peer_value": None,
        "each": [round(float(value), 3) if np.isfinite(value) else None for value in each],
    }


def missed(line: Line) -> bool:
    """Whether a line's target is."""
    if line["target"] is None:
        return False
    return bool(line["value"] > line["target"] if line["better"] == "lower" else line["value"] < line["target"])


def main(arguments: Sequence[str]) -> int:
    """One JSON line a figure; 1 if a target is missed."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(one_seed, SEEDS))
    lines = lines_of(found)
    for line in lines:
        print(json.dumps(line), flush=True)
    if "--page" in arguments:
        write_page(lines, [row for one in found for row in _fit_rows(one)], _facts())
    return int(any(missed(line) for line in lines))


def _fit_rows(one: Seed) -> list[Line]:
    """What was fitted, a row a layer."""
    told, known = one.response, one.response.known()
    names = ("gain", "gain_error", "fade", "ratio", "design")
    return [
        {
            "seed": one.seed,
            "layer": layer,
            "model": told.model,
            "known": bool(known[layer]),
            "frozen": one.frozen_gain[layer],
            "r2": [one.r2_by_model[name][layer] for name in ("softmax", "linear")],
            **{name: float(getattr(told, name)[layer]) for name in names},
        }
        for layer in range(len(known))
    ]


def _facts() -> Line:
    """What the page says of the toy."""
    return {
        "experts": MODEL.num_experts,
        "layers": MODEL.num_hidden_layers,
        "tokens": SEQUENCES * LENGTH,
        "tried": f"{STEPS} steps after a prefix of {PREFIX} under {RECORDED.label()}, {JUDGED_FROM} of them not judged",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
