"""The sampling floor in force: frame, statistics and raster count in floors of tokens as correlated as they are."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.services import experts_frame
from controlplane.store import expert_raster, experts
from controlplane.store.engine import Store
from controlplane.store.expert_coding import encode_steps
from controlplane.store.expert_records import ExpertStep, Shape, summed

SHAPE, RANKS, TOKENS, RUN = Shape(2, 8, 8, 1), 8, 2048, 4


def step(number: int, run_tokens: int = RUN) -> ExpertStep:
    """Even routing of tokens that come in runs of one choice: the design effect is the length of a run."""
    dice = np.random.default_rng([number, run_tokens])
    parts = []
    for rank in range(RANKS):
        counts = dice.multinomial(TOKENS // run_tokens, [1 / 8] * 8, SHAPE.layers) * run_tokens
        bias = np.zeros((2, 8), np.float32)
        parts.append(
            ExpertStep("r", 1, number, 1e9 + number + rank / 10, 1, TOKENS, 0, SHAPE, counts.astype(np.uint32), bias)
        )
    return summed(parts)


def test_the_frame_counts_in_floors_of_correlated_tokens() -> None:
    window = [step(number) for number in range(1, 65)]
    meta, arrays = experts_frame.of_window(window)
    assert meta["design_effect"] == pytest.approx(RUN, rel=0.1)
    assert arrays["history"].mean() == pytest.approx(1.0, rel=0.1), "even routing lies at its floor"
    assert arrays["history"][:, -1] == pytest.approx(arrays["cv_floor"])
    assert meta["floor_cv"] == pytest.approx(np.sqrt(7 * RUN / (RANKS * TOKENS)), rel=0.06)
    assert "deff 4" in str(meta["tiles"])


def test_one_rank_alone_is_held_against_independent_tokens() -> None:
    window = [step(number) for number in range(1, 65)]
    alone = [ExpertStep(*one.key, one.at_s, 1, one.tokens, 0, SHAPE, one.counts, one.bias) for one in window]
    meta, arrays = experts_frame.of_window(alone)
    assert meta["design_effect"] == 1.0 and arrays["history"].mean() == pytest.approx(2.0, rel=0.1)
    assert "deff" not in str(meta["tiles"])


def test_stored_statistics_and_the_raster_use_the_trailing_design_effect(sqlite_store: Store) -> None:
    steps = [step(number, RUN if number > 200 else 1) for number in range(1, 401)]
    with sqlite_store.write() as session:
        session.add(experts.chunk_row("r", 1, SHAPE, encode_steps(steps), level=0, steps=(1, 400, 400)))
    with sqlite_store.read() as session:
        floors = experts.read_statistics(session, "r", ("cv_floor", "cv")).values
        raster = expert_raster.read_raster(session, "r", 1, first=1, last=400, columns=400)
    assert raster is not None
    assert raster.cv_floor == pytest.approx(floors["cv_floor"][1])
    for part in (slice(64, 200), slice(300, 400)):
        assert floors["cv_floor"][:, part].mean() == pytest.approx(1.0, rel=0.1)
    assert floors["cv"][:, 300:].mean() > 1.8 * floors["cv"][:, :200].mean()
