"""Exports of expert records: what is in the store comes out, number by number, in every form and never all at once."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from controlplane.services import experts_export, experts_matrices
from controlplane.services.experts_export import OF_LAYER, Asked, ExportRefused, ParquetMissing, begin
from controlplane.store import expert_merging, expert_thinning, experts
from controlplane.store.engine import Store
from controlplane.store.expert_records import ExpertStep
from controlplane.store.expert_thinning import DAY_S, Policy
from tests.store.test_store_experts import record, write

NAMES = ["run", "attempt", "step", "at", "layer", "slot", "is_skip", "count", "share", "bias"]


@pytest.fixture
def filled(sqlite_store: Store) -> tuple[Store, list[ExpertStep]]:
    """A run with a restart: steps 1 to 279 of attempt 1, then 280 to 320 of attempt 2; 3 layers, 4 experts, a skip."""
    write(sqlite_store, [measured(step) for step in range(1, 300)], size=16)
    write(sqlite_store, [record(step, 2) for step in range(280, 321)], size=16)
    expert_merging.compact_once(sqlite_store)
    return sqlite_store, [record(step, 1 if step < 280 else 2) for step in range(1, 321)]


def measured(step: int) -> ExpertStep:
    """Every tenth step with router facts: z-loss and margin of each layer, no dropped share."""
    facts = np.array([[step, 2 * step, 3], [0.25, 0.5, np.nan], [np.nan] * 3], np.float32)
    return replace(record(step), facts=facts if step % 10 == 0 else None)


def content(store: Store, **asked: Any) -> bytes:
    return b"".join(begin(store, Asked("run-1", **asked)).pieces)


def long(steps: list[ExpertStep], layers: tuple[int, ...] = (0, 1, 2)) -> list[tuple[Any, ...]]:
    """The rows that there must be."""
    rows = []
    for one in steps:
        for layer in layers:
            real = one.counts[layer, :4].sum()
            for slot in range(5):
                share = np.float32(one.counts[layer, slot] / real) if slot < 4 else None
                where = (one.attempt_no, one.step, layer, slot, slot == 4)
                rows.append((*where, int(one.counts[layer, slot]), share, one.bias[layer, slot]))
    return rows


def told(row: dict[str, str]) -> tuple[Any, ...]:
    share = np.float32(row["share"]) if row["share"] else None
    where = tuple(int(row[name]) for name in ("attempt", "step", "layer", "slot"))
    return (*where, row["is_skip"] == "true", int(row["count"]), share, np.float32(row["bias"]))


def test_csv_brings_every_number_back(filled: tuple[Store, list[ExpertStep]], monkeypatch: pytest.MonkeyPatch) -> None:
    store, steps = filled
    monkeypatch.setitem(experts_export.ROWS, "csv", 100)
    made = begin(store, Asked("run-1"))
    assert (made.name, made.media_type) == ("run-1-experts-loads.csv", "text/csv")
    pieces = list(made.pieces)
    assert len(pieces) > 50
    rows = list(csv.DictReader(io.StringIO(b"".join(pieces).decode())))
    assert list(rows[0]) == NAMES
    assert (rows[0]["run"], rows[0]["at"]) == ("run-1", "2027-01-15T08:00:01.000Z")
    assert [told(row) for row in rows] == long(steps)


def test_a_part_of_the_layers_and_steps(filled: tuple[Store, list[ExpertStep]]) -> None:
    store, steps = filled
    rows = csv.DictReader(io.StringIO(content(store, layers=(0, 2), first=270, last=290).decode()))
    assert [told(row) for row in rows] == long(steps[269:290], (0, 2))


def test_parquet_has_the_same_rows_with_their_types(filled: tuple[Store, list[ExpertStep]]) -> None:
    store, steps = filled
    found = pq.read_table(io.BytesIO(content(store, form="parquet")))
    assert found.column_names == NAMES
    kinds = dict(zip(found.column_names, map(str, found.schema.types), strict=True))
    assert (kinds["at"], kinds["count"], kinds["bias"]) == ("timestamp[ms, tz=UTC]", "uint32", "float")
    wanted = long(steps)
    columns = [found[name].to_pylist() for name in ("attempt", "step", "layer", "slot", "is_skip", "count")]
    assert list(zip(*columns, strict=True)) == [row[:6] for row in wanted]
    assert [None if share is None else np.float32(share) for share in found["share"].to_pylist()] == [
        row[6] for row in wanted
    ]
    np.testing.assert_array_equal(found["bias"].to_numpy(), np.array([row[7] for row in wanted]))


def test_matrices_are_the_steps_one_after_the_other(filled: tuple[Store, list[ExpertStep]]) -> None:
    store, steps = filled
    found = np.load(io.BytesIO(content(store, form="npz", layers=(1, 2))))
    assert found["step"].tolist() == [one.step for one in steps]
    assert found["attempt"].tolist() == [one.attempt_no for one in steps]
    assert (found["layer"].tolist(), int(found["experts"]), int(found["top_k"])) == ([1, 2], 4, steps[0].shape.top_k)
    assert found["design_effect"].shape == found["spread_freedom"].shape == (len(steps), 2)
    np.testing.assert_array_equal(found["counts"], np.stack([one.counts[1:] for one in steps]))
    np.testing.assert_array_equal(found["bias"], np.stack([one.bias[1:] for one in steps]))


@pytest.mark.parametrize("form", ["csv", "parquet", "npz"])
def test_statistics_are_of_every_step_also_of_thinned_ones(filled: tuple[Store, list[ExpertStep]], form: str) -> None:
    store, _ = filled
    with store.read() as session:
        known = experts.read_statistics(session, "run-1", OF_LAYER)
    expert_thinning.thin_once(store, 1.8e9 + 60 * DAY_S, Policy())
    made = content(store, form=form, what="layers")
    if form == "npz":
        arrays = np.load(io.BytesIO(made))
        found = {name: arrays[name] for name in OF_LAYER}
        assert arrays["step"].tolist() == known.step.tolist()
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(made.decode())))
        assert [int(row["step"]) for row in rows[::3]] == known.step.tolist()
        found = {name: np.array([row[name] or "nan" for row in rows], np.float32).reshape(-1, 3) for name in OF_LAYER}
    else:
        table = pq.read_table(io.BytesIO(made))
        found = {name: table[name].to_numpy().reshape(-1, 3) for name in OF_LAYER}
    for name in OF_LAYER:
        np.testing.assert_array_equal(found[name].T, known.values[name])
    assert found["z_loss"][19].tolist() == [20.0, 40.0, 3.0] and np.isnan(found["z_loss"][20]).all()


def test_what_cannot_be_sent_is_said_with_what_can(filled: tuple[Store, list[ExpertStep]]) -> None:
    store, _ = filled
    write(store, [record(step, 2) for step in range(321, 700)], size=16)
    expert_merging.compact_once(store)
    expert_thinning.thin_once(store, 1.8e9 + 60 * DAY_S, Policy())

    def refusal(run_id: str = "run-1", **asked: Any) -> tuple[str, str, str]:
        with pytest.raises(ExportRefused) as found:
            begin(store, Asked(run_id, **asked))
        return found.value.code, found.value.title, found.value.hint

    assert refusal("none") == ("no_data", "none has no expert record yet", "")
    title = "run-1 has nothing stored of steps 800 to 900"
    assert refusal(first=800, last=900) == ("no_data", title, "There are steps 1 to 699.")
    assert refusal(layers=(0, 7)) == ("not_found", "run-1 has no layer 7", "It has layers 0 to 2.")
    code, title, hint = refusal(first=450, last=460)
    assert (code, title) == ("thinned", "run-1 has only statistics left of steps 450 to 460")
    assert hint.endswith("ask for what=layers. The nearest step that has them is 448.")


def test_without_the_library_parquet_is_refused_before_anything_is_sent(
    filled: tuple[Store, list[ExpertStep]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ParquetMissing):
        begin(filled[0], Asked("run-1", form="parquet"))
    assert content(filled[0], first=1, last=1).startswith(b"run,")


def test_a_file_whose_steps_were_thinned_meanwhile_is_broken_off(
    filled: tuple[Store, list[ExpertStep]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = filled
    write(store, [record(step, 2) for step in range(321, 700)], size=16)
    expert_merging.compact_once(store)
    plan = experts_matrices._plan

    def planned(*given: Any) -> Any:
        found = plan(*given)
        expert_thinning.thin_once(store, 1.8e9 + 60 * DAY_S, Policy())
        return found

    monkeypatch.setattr(experts_matrices, "_plan", planned)
    pieces: Iterator[bytes] = begin(store, Asked("run-1", form="npz")).pieces
    with pytest.raises(experts_matrices.RecordsChanged):
        list(pieces)
