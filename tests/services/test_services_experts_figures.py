"""Every statistic of a layer beside what chance makes of it: on the page's table, in the terminal, in the export."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from controlplane.rules import book
from controlplane.rules.expert_chance import of_chance
from controlplane.rules.experts import churn, lag1_autocorrelation, layer_statistics, sampling_floor
from controlplane.services import experts_derived, experts_export, experts_figures, experts_frame
from controlplane.services.experts_export import OF_LAYER, Asked
from controlplane.store import expert_merging, expert_thinning
from controlplane.store.engine import Store
from controlplane.store.expert_thinning import DAY_S, Policy
from tests.services.test_services_experts_judged import healthy, steps_of
from tests.store.test_store_experts import record, write

BOOK = book.load()


def test_chance_is_what_even_routing_shows() -> None:
    for experts, tokens in ((8, 4096), (64, 65536)):
        counts = np.random.default_rng(1).multinomial(tokens, np.full(experts, 1 / experts), (400, 1))
        found = layer_statistics(counts, np.zeros(counts.shape), experts, 1)
        expected = of_chance(sampling_floor(tokens, experts, 1), experts, 64)
        for name in ("cv", "avgvio", "gini"):
            assert getattr(found, name).mean() == pytest.approx(float(expected[name]), rel=0.06), name
        for name in ("maxvio", "min_load"):
            off = abs(getattr(found, name).mean() - float(expected[name]))
            assert off < 0.6 * float(expected["maxvio"]), f"{name}: √(2 ln E) is above the mean of few normals"
        for name in ("entropy", "effective"):
            lost, wanted = 1 - getattr(found, name).mean(), 1 - float(expected[name])
            assert lost == pytest.approx(wanted, rel=0.1), name
        assert churn(found.share).mean() == pytest.approx(float(expected["churn"]), rel=0.06)
        lag1 = [lag1_autocorrelation(found.share[at : at + 64]) for at in range(0, 384, 64)]
        assert np.mean(lag1) == pytest.approx(float(expected["lag1"]), abs=0.05)


def test_a_layers_figures_are_those_of_its_window() -> None:
    steps = steps_of(healthy, range(300, 364))
    seen = experts_frame.picture(steps, BOOK)
    row = experts_figures.of_layers(seen, steps, None)[1]
    assert tuple(row) == experts_figures.NAMES
    counts, bias = (np.stack([getattr(one, name) for one in steps]) for name in ("counts", "bias"))
    found = layer_statistics(counts, bias, 8, 1)
    for name in ("maxvio", "avgvio", "gini", "min_load", "entropy", "bias_mean", "bias_spread", "skip_share"):
        each = getattr(found, name)[:, 1]
        assert row[name]["step"] == pytest.approx(each[-1]) and row[name]["window"] == pytest.approx(each.mean()), name
    assert row["effective"]["window"] == pytest.approx(8 * found.effective[:, 1].mean())
    assert row["cv"]["chance"] == pytest.approx(seen.floor_of_layers[1]) and row["cv_floor"]["chance"] == 1.0
    assert row["cv"]["step"] == pytest.approx(row["cv_floor"]["step"] * row["cv"]["chance"], rel=1e-5)  # type: ignore[operator]  # all are known
    assert row["churn"]["window"] == pytest.approx(churn(found.share)[1], rel=1e-5)
    assert row["design_effect"]["window"] == pytest.approx(seen.effect[1]) and row["lag1"]["step"] is None
    assert row["z_loss"] == {"step": None, "window": None, "chance": None}


def exported(store: Store, **asked: object) -> list[dict[str, str]]:
    made = experts_export.begin(store, Asked("run-1", what="layers", **asked))  # type: ignore[arg-type]  # short
    return list(csv.DictReader(io.StringIO(b"".join(made.pieces).decode())))


def test_the_export_has_the_same_figures(sqlite_store: Store) -> None:
    steps = [record(step) for step in range(300, 620)]
    write(sqlite_store, steps, size=16)
    rows = [row for row in exported(sqlite_store, layers=(1,)) if int(row["step"]) >= 400]
    names = {*experts_figures.NAMES} - {"design_effect"}
    assert names <= rows[0].keys() and {*OF_LAYER} <= rows[0].keys()
    found = layer_statistics(np.stack([one.counts for one in steps]), np.stack([one.bias for one in steps]), 4, 1)
    for row in rows[::37]:
        at = int(row["step"]) - 300
        for name in ("avgvio", "gini", "min_load", "entropy", "bias_mean"):
            assert float(row[name]) == pytest.approx(getattr(found, name)[at, 1], rel=1e-4, abs=1e-6), name
        assert float(row["churn"]) == pytest.approx(churn(found.share[at - 1 : at + 1])[1], rel=1e-4)
        lag1 = lag1_autocorrelation(found.share[at - 63 : at + 1])[1]
        assert float(row["lag1"]) == pytest.approx(lag1, abs=1e-4), row["step"]


def test_what_was_thinned_has_its_statistics_and_no_autocorrelation(sqlite_store: Store) -> None:
    write(sqlite_store, [record(step) for step in range(1, 700)], size=64)
    expert_merging.compact_once(sqlite_store)
    expert_thinning.thin_once(sqlite_store, 1.8e9 + 60 * DAY_S, Policy())
    rows = exported(sqlite_store, layers=(0,), first=400, last=450)
    assert len(rows) == 51 and all(row["gini"] and row["entropy"] for row in rows)
    assert {row["lag1"] for row in rows} == {""}, "a window has no gaps"
    assert all(row["lag1"] for row in exported(sqlite_store, layers=(0,), first=100, last=200))


def test_sums_that_move_on_are_the_windows_own() -> None:
    shares = np.random.default_rng(2).dirichlet(np.full(6, 5.0), (90, 2))
    shares[:, 1] = 1 / 6
    found = experts_derived.trailing_lag1(shares, 16)
    for at in (0, 1, 2, 9, 40, 89):
        alone = lag1_autocorrelation(shares[max(0, at - 15) : at + 1])
        assert found[at] == pytest.approx(alone, abs=1e-9, nan_ok=True)
    assert np.isnan(found[:, 1]).all()
