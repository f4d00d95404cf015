"""What a page calls uneven, dead, swinging or skipping is what the alarms name in the same window, and as grave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from controlplane.clock import ManualClock
from controlplane.rules import alarms, book
from controlplane.rules.book import RuleBook
from controlplane.rules.experts import layer_statistics
from controlplane.services import (
    expert_windows,
    experts_frame,
    experts_judged,
    experts_together,
    experts_words,
    frames,
    views_experts,
)
from controlplane.services.live import Live
from controlplane.store import experts
from controlplane.store.engine import Store
from controlplane.store.expert_coding import encode_steps
from controlplane.store.expert_records import ExpertStep, Shape, summed
from controlplane.store.watch import LiveAttempt

BOOK = book.load()
SHAPE, RANKS, TOKENS, RUN = Shape(3, 9, 8, 1), 4, 1024, 4
FAIR = np.ones(8)
SEVERITIES = {"warning": 1, "error": 2, "critical": 2}
OF_LOADS = ("expert-imbalance", "expert-oscillation", "expert-dead", "expert-skip", "expert-parallel-skew")
Weights = Callable[[int], np.ndarray]


def healthy(step: int) -> np.ndarray:
    """A lump of like tokens that the controller passes from expert to expert: each step is uneven, 64 are not."""
    return FAIR + 1.2 * (np.arange(8) == step % 8)


def tilted(step: int) -> np.ndarray:
    return FAIR + 0.8 * (np.arange(8) == 3)


def collapsed(step: int) -> np.ndarray:
    return FAIR + 9.0 * (np.arange(8) == 3)


def two_full(step: int) -> np.ndarray:
    return FAIR + 0.6 * (np.arange(8) < 2)


def two_fuller(step: int) -> np.ndarray:
    return FAIR + 0.25 * (np.arange(8) < 2)


def swinging(step: int) -> np.ndarray:
    return FAIR + 0.9 * (np.arange(8) % 2 == step % 2)


def dying(step: int) -> np.ndarray:
    return FAIR * (np.arange(8) != 5) if step > 310 else FAIR


def settling_down(step: int) -> np.ndarray:
    return FAIR + 3.0 * np.exp(-(step - 200) / 1000) * (np.arange(8) == 3)


def steps_of(weights: Weights, numbers: Sequence[int], *, skip: float = 0.0, **changes: object) -> list[ExpertStep]:
    """Steps of four ranks whose tokens come in runs of one choice; layer 1 has the weights, the others are fair."""
    return [replace(one_step(weights, number, skip), **changes) for number in numbers]  # type: ignore[arg-type]  # short


@cache
def one_step(weights: Weights, number: int, skip: float) -> ExpertStep:
    dice = np.random.default_rng(number)
    parts = []
    for rank in range(RANKS):
        counts = np.zeros((3, 9), np.uint32)
        counts[:, :8] = dice.multinomial(TOKENS // RUN, FAIR / 8, 3) * RUN
        wanted = weights(number)
        counts[1, :8] = dice.multinomial(TOKENS // RUN, wanted / wanted.sum()) * RUN
        counts[1, 8] = int(skip * TOKENS)
        bias = np.full((3, 9), -0.001 * number, np.float32)
        parts.append(ExpertStep("r", 1, number, 1e9 + number + rank / 10, 1, TOKENS, 0, SHAPE, counts, bias))
    return summed(parts)


def alarmed(steps: Sequence[ExpertStep], rules: RuleBook = BOOK, **more: object) -> int:
    """How grave the gravest alarm over loads is: 0 none, 1 warning, 2 error."""
    window = replace(experts_together.window_of(steps), **more)  # type: ignore[arg-type]  # a test's shorthand
    found = [finding for finding in alarms.judge(window, rules).findings if finding.rule in OF_LOADS]
    return max((SEVERITIES[finding.severity] for finding in found), default=0)


def test_a_healthy_window_is_even_though_its_steps_are_not() -> None:
    for end in range(330, 400, 10):
        steps = steps_of(healthy, range(end - 63, end + 1))
        seen = experts_frame.picture(steps, BOOK)
        assert float(seen.cv_floor[1]) > 1.5 < float(seen.judged.floors[1]), "one step alone would be called uneven"
        told = experts_words.sentence(seen)
        assert told["level"] == "ok" and {tile["level"] for tile in experts_words.tiles(seen)} == {"ok"}
        assert told["lead"] == "All 3 layers even out over 64 steps."
        assert alarmed(steps) == 0


@pytest.mark.parametrize(
    ("weights", "skip", "levels"),
    [(healthy, 0.0, {0}), (tilted, 0.0, {1}), (collapsed, 0.0, {2}), (swinging, 0.0, {2}), (dying, 0.0, {0, 1})],
)
def test_the_page_is_as_grave_as_the_alarm(weights: Weights, skip: float, levels: set[int]) -> None:
    found = set()
    for end in (300, 321, 330, 345, 374):
        steps = steps_of(weights, range(end - 63, end + 1), skip=skip)
        seen = experts_frame.picture(steps, BOOK)
        assert int(seen.judged.levels.max()) == alarmed(steps), end
        assert experts_words.sentence(seen)["level"] == experts_judged.NAMES[alarmed(steps)]
        assert not seen.judged.levels[[0, 2]].any(), "the other layers are fair"
        found.add(alarmed(steps))
    assert found == levels


@pytest.mark.parametrize(("skip", "level"), [(0.0005, "ok"), (0.01, "warn")])
def test_the_skip_slot_is_judged_by_its_rule(skip: float, level: str) -> None:
    steps = steps_of(lambda _: FAIR, range(300, 364), skip=skip)
    tiles = {tile["label"]: tile for tile in experts_words.tiles(experts_frame.picture(steps, BOOK))}
    assert tiles["skip share"]["level"] == level == experts_judged.NAMES[alarmed(steps)]


def test_expert_parallel_ranks_are_judged_by_their_rule() -> None:
    steps = steps_of(two_full, range(300, 364), layout=(4, 1, 1))
    head, arrays = experts_frame.of_window(steps, book=BOOK)
    assert arrays["skewed"].tolist() == [0, 2, 0] and head["sentence"]["level"] == "fault"
    assert alarmed(steps) == 2
    evener = steps_of(two_fuller, range(300, 364), layout=(4, 1, 1))
    assert experts_frame.of_window(evener, book=BOOK)[1]["skewed"].tolist() == [0, 1, 0] and alarmed(evener) == 1


def test_thresholds_are_the_configured_ones_in_head_and_levels() -> None:
    rule = BOOK["expert-imbalance"]
    lax = replace(rule, thresholds={**rule.thresholds, "cv": 9.0, "effective": 0.0, "cv_floor": 7.0, "maxvio": 99.0})
    configured = RuleBook({**BOOK.rules, rule.id: lax})
    steps = steps_of(tilted, range(300, 364))
    head, arrays = experts_frame.of_window(steps, book=configured)
    assert head["rules"]["expert-imbalance"]["cv_floor"] == 7.0 and not arrays["uneven"].any()
    assert experts_frame.of_window(steps)[1]["uneven"].tolist() == [0, 1, 0]


def test_a_shorter_window_of_the_rule_is_the_rules_own() -> None:
    rule = BOOK["expert-imbalance"]
    short = replace(rule, thresholds={**rule.thresholds, "window_steps": 32})
    configured = RuleBook({**BOOK.rules, rule.id: short})
    steps = steps_of(lambda number: collapsed(number) if number > 331 else FAIR, range(300, 364))
    seen = experts_frame.picture(steps, configured)
    assert int(seen.judged.uneven[1]) == alarmed(steps, configured) == 2


def test_a_window_that_no_rule_judges_says_why() -> None:
    def said(steps: Sequence[ExpertStep], **more: bool) -> tuple[str, str]:
        told = experts_words.sentence(experts_frame.picture(steps, BOOK), **more)
        return told["lead"], told["level"]

    young = steps_of(collapsed, range(150, 214))
    assert said(young) == ("Step 213: the balancing biases are still settling.", "ok")
    assert said(young, ended=True)[0] == "The run ended at step 213, before its balance could be judged."
    second = [replace(one, attempt_no=2) for one in steps_of(collapsed, range(354, 364))]
    lead, level = said([*steps_of(collapsed, range(300, 354)), *second])
    assert "10 of the 64 steps that are judged together, in attempt 2" in lead and level == "ok"
    assert "too many records" in said(steps_of(collapsed, range(300, 300 + 4 * 64, 4)))[0]


def test_what_falls_from_before_is_left_alone_as_the_alarm_does(sqlite_store: Store) -> None:
    """The CV of 192 steps before comes from the store: in the live frame, the replayed one, and the summary."""
    steps = steps_of(settling_down, range(201, 501))
    with sqlite_store.write() as session:
        session.add(experts.chunk_row("r", 1, SHAPE, encode_steps(steps), level=0, steps=(201, 500, 300)))
    live = Live(sqlite_store, ManualClock(2e9), BOOK)
    live.take_steps(steps[-64:], simulated=False, received_s=2e9)
    attempt = LiveAttempt(run_id="r", run_name="r", no=1, state="running", nodes=())
    with sqlite_store.read() as session:
        window = expert_windows.of_attempt(session, attempt, 0.0, BOOK)
        past = views_experts.frame_at(session, live, "r", 500, BOOK)
        told = views_experts.summary(session, live, "r", now=2e9, book=BOOK)
    now = live.experts_frame("r")
    assert window is not None and window.cv_before is not None and past is not None and now is not None
    assert told is not None
    assert not [finding for finding in alarms.judge(window, BOOK).findings if finding.rule in OF_LOADS]
    alone = experts_frame.picture(steps[-64:], BOOK)
    assert alone.judged.uneven[1] > 0, "by the window alone it would be uneven"
    for head, arrays in (frames.unpack(now[1]), frames.unpack(past[1])):
        assert not arrays["level"].any() and head["sentence"] == told["sentence"]
    assert "its CV is falling" in told["sentence"]["lead"]


def unrecorded(steps: Sequence[ExpertStep], layers: Sequence[int], numbers: range) -> list[ExpertStep]:
    """The same steps; of those `numbers` nobody told these layers, as where the agent of a pipeline's stage is gone."""
    found = [replace(one, counts=one.counts.copy(), bias=one.bias.copy()) for one in steps]
    for one in found:
        if one.step in numbers:
            one.counts[layers], one.bias[layers] = 0, np.nan
    return found


@pytest.mark.parametrize(
    ("layers", "lead", "rest"),
    [
        ([2], "1 of 3 layers has no tokens recorded.", "The other 2 "),
        ([0, 2], "2 of 3 layers have no tokens recorded.", "The other evens out"),
        ([0, 1, 2], "3 of 3 layers have no tokens recorded.", ""),
    ],
)
def test_layers_that_nobody_recorded_are_not_called_even(layers: list[int], lead: str, rest: str) -> None:
    window = range(300, 364)
    seen = experts_frame.picture(unrecorded(steps_of(healthy, window), layers, window), BOOK)
    told, tiles = experts_words.sentence(seen), experts_words.tiles(seen)
    assert (told["lead"], told["level"]) == (lead, "warn") and told["rest"].startswith(rest)
    assert bool(told["rest"]) == bool(rest)
    assert "All 3" not in told["lead"] + told["rest"] and "?" not in str([told, tiles]) and "nan" not in str(tiles)
    assert (tiles[0]["level"], tiles[0]["context"]) == ("warn", f"{len(layers)} of 3 layers not recorded")
    assert not seen.judged.levels.any(), "no alarm names a layer"
    if len(layers) < 3:
        assert seen.deff == pytest.approx(RUN, rel=0.3), "silent layers tell nothing of how tokens correlate"
        assert seen.found.floor_cv == pytest.approx(np.sqrt(7 / (RANKS * TOKENS))), "of the layers that have tokens"


def test_a_layer_recorded_in_few_steps_is_said_to_be_so_and_what_is_wrong_stays_first() -> None:
    window = range(300, 364)
    told = experts_words.sentence(experts_frame.picture(unrecorded(steps_of(lambda _: FAIR, window), [2], range(340))))
    assert told["lead"] == "1 of 3 layers has tokens for its experts in fewer than half of the steps."
    told = experts_words.sentence(experts_frame.picture(unrecorded(steps_of(tilted, window), [2], window)))
    assert told["lead"].startswith("Layer 1 sends") and told["rest"].endswith("1 of 3 layers has no tokens recorded.")
    young = range(150, 214)
    told = experts_words.sentence(experts_frame.picture(unrecorded(steps_of(lambda _: FAIR, young), [2], young)))
    assert told["lead"].endswith("still settling.") and "no tokens recorded" in told["rest"]


def test_one_step_without_tokens_hides_no_uneven_layer_from_the_page() -> None:
    steps = unrecorded(steps_of(tilted, range(300, 364)), [0, 1, 2], range(330, 331))
    seen = experts_frame.picture(steps, BOOK)
    assert int(seen.judged.levels.max()) == alarmed(steps) == 1
    assert np.isfinite(seen.judged.floors).all() and np.isfinite(seen.judged.lag1).all()


@pytest.mark.parametrize("weights", [two_full, two_fuller])
def test_the_headline_names_skewed_ranks(weights: Weights) -> None:
    rule = BOOK["expert-imbalance"]
    lax = replace(rule, thresholds={**rule.thresholds, "cv": 9.0, "effective": 0.0, "maxvio": 99.0})
    steps = steps_of(weights, range(300, 364), layout=(4, 1, 1))
    told = experts_words.sentence(experts_frame.picture(steps, RuleBook({**BOOK.rules, rule.id: lax})))
    assert told["lead"] == "Layer 1's ranks are skewed." and "layers" not in told["rest"]


def test_a_step_without_tokens_long_before_hides_no_fall(sqlite_store: Store) -> None:
    steps = unrecorded(steps_of(settling_down, range(201, 501)), [0, 1, 2], range(280, 281))
    with sqlite_store.write() as session:
        session.add(experts.chunk_row("r", 1, SHAPE, encode_steps(steps), level=0, steps=(201, 500, 300)))
    with sqlite_store.read() as session:
        before = expert_windows.cv_before(session, steps[-1])
    told = [layer_statistics(one.counts, one.bias, 8, 1).cv for one in steps if 245 <= one.step <= 308]
    assert before is not None and before == pytest.approx(np.nanmean(told, axis=0), rel=1e-5)
