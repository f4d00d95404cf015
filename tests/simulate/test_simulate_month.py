"""A simulated month: every second is accounted for, each cause costs what it should, and the moves are the server's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.runs.causes import MIX, Cause, Costs, back_s
from controlplane.simulate.chance import stops
from controlplane.simulate.month import Month, Outcome, Setup
from controlplane.store.engine import Store
from tests.runs.piloting import Pilot
from tests.simulate.months import DAY_S, GPUS, kinds, month, named

COSTS = Costs()


def real(seed: int, **changes: object) -> Outcome:
    values = {"gpus": 4_096, "interval": 200, "spares": 10, "costs": COSTS, "days": 20.0, **changes}
    return Month(Setup(**values), stops(seed)).run()  # type: ignore[arg-type]  # the test's own values


@pytest.mark.parametrize("mode", ["act", "advise"])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_lost_by_cause_is_all_that_is_lost_and_what_the_servers_ledger_says(seed: int, mode: str) -> None:
    found = real(seed, mode=mode)
    lost = sum(found.lost.values())
    assert all(seconds >= 0 for seconds in found.lost.values())
    assert lost == pytest.approx(found.wall_s * (1 - found.ettr_percent / 100), abs=0.01)
    assert lost == pytest.approx(sum(loss.seconds for loss in found.ledger.lost), abs=0.01)
    assert found.ledger.percent == pytest.approx(found.ettr_percent)
    assert found.ledger.unattributed_percent == pytest.approx(0.0, abs=1e-6)
    assert found.attempts > 20


def test_a_seed_is_a_month_and_another_seed_another() -> None:
    assert real(7) == real(7)
    assert real(7).ettr_percent != real(8).ettr_percent
    # luck does not depend on what is tried
    assert real(7, interval=100).stops == pytest.approx(real(7).stops, abs=2)


def test_a_day_without_a_stop_loses_its_first_start_and_its_checkpoints() -> None:
    found = month().run()
    first = COSTS.restart.place_s + COSTS.load_s
    cycles = (DAY_S - first) / (100 * 2.0 + 2.0)
    assert sum(found.lost.values()) == pytest.approx(first + cycles * 2.0, abs=2.0)
    assert {cause for cause, _ in found.lost} <= {"first start", "checkpoints"}
    assert (found.attempts, found.stops, found.calls) == (1, {}, 0)
    assert found.idle_node_s == 3 * DAY_S


@pytest.mark.parametrize("cause", MIX, ids=lambda one: one.name)
def test_a_stop_costs_its_way_back_and_the_steps_since_the_last_checkpoint(cause: Cause) -> None:
    at = 20_000.0
    found = month(named(cause.name, at)).run()
    phases = {phase: seconds for (name, phase), seconds in found.lost.items() if name == cause.name}
    way_back = sum(seconds for phase, seconds in phases.items() if phase != "steps again")
    assert found.stops == {cause.name: 1} and found.attempts == 2 and found.calls == 0
    assert way_back == pytest.approx(back_s(cause, COSTS), abs=0.11)
    most = {"slow": 2.0, "silent": COSTS.silent_s + 250.0}.get(cause.effect, 202.0)
    assert phases["steps again"] <= most
    if cause.effect == "silent":
        assert phases["steps again"] >= COSTS.silent_s - 100.0, "what was computed since then is computed again"
    assert (found.wrong, found.ignored) == (0, 0)


def test_a_blamed_node_is_left_out_and_comes_back_repaired() -> None:
    world = month(named("HBM", 3_000.0), named("NIC", 3_000.0), days=2.0)
    found = world.run()
    first, second, third = (set(one.nodes) for one in world.rows.attempts)
    assert len(first - second) == len(second - third) == 1 and not (first - second) & third
    assert all(one.state == "healthy" and not one.fault for one in world.rows.candidates)
    assert found.idle_node_s == pytest.approx(3 * 2 * DAY_S - 2 * COSTS.repair_s, rel=1e-6)


def test_with_no_spare_left_the_run_waits_for_the_first_repair() -> None:
    hits = [named("HBM", 1_000.0, where=where) for where in (0.1, 0.3, 0.5)]
    found = month(*hits, spares=2, days=2.0).run()
    waited = found.lost["HBM", "no spare node"]
    assert found.waits == 1
    assert COSTS.repair_s - 5_000.0 < waited < COSTS.repair_s


def test_a_run_whose_own_error_comes_back_without_progress_waits_for_a_person() -> None:
    failing = [named("software", 400.0, error=1) for _ in range(4)]
    world = month(*failing, interval=1_000)
    found = world.run()
    assert found.calls >= 1
    assert found.lost["software", "person"] >= COSTS.person_s


def test_with_a_human_on_call_each_stop_waits_for_one() -> None:
    hit = month(named("GPU", 9_000.0), mode="advise").run()
    assert hit.calls == 1
    assert hit.lost["GPU", "person"] == pytest.approx(COSTS.person_s)
    alone = month(named("GPU", 9_000.0)).run()
    assert hit.ettr_percent < alone.ettr_percent


def test_a_person_goes_back_before_the_corruption_too() -> None:
    found = month(named("silent corruption", 9_000.0), mode="advise").run()
    assert found.calls == 1 and found.wrong == 0
    assert found.lost["silent corruption", "steps again"] >= COSTS.silent_s


def test_a_checkpoint_that_is_still_being_written_is_not_resumed_from() -> None:
    at = 180.1 + 10 * 202.0 + 5.0
    quick = month(named("software", at)).run()
    slow = month(named("software", at), costs=replace(COSTS, write_s=60.0)).run()
    lost = [one.lost["software", "steps again"] for one in (quick, slow)]
    assert lost[1] - lost[0] == pytest.approx(200.0, abs=0.01), "one interval more"


# --- the same moves as the server's ---


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def sailed(pilot: Pilot, what: str) -> list[str]:
    """The moves of the real controller, over a store and a scripted backend, through one such stop."""
    run_id = pilot.submit()
    lines = pilot.round()
    pilot.train(run_id, 1, 20)
    pilot.save(run_id, 10, at=-30)
    lines += pilot.round(1)
    name = pilot.last(run_id).name
    if what == "software":
        pilot.end(run_id, "failed", **{"class": "error", "message": "boom", "fingerprint": "boom"})
    else:
        pilot.backend.attempts[name].stuck = what == "GPU"
        rule = {"HBM": "hbm-uncorrectable", "GPU": "gpu-lost"}[what]
        pilot.hit(rule=rule, last_clean_s=pilot.clock.now() - 2)
    lines += pilot.round(1)
    if what == "GPU":
        lines += pilot.round(36)
        pilot.end(run_id, "failed")
        lines += pilot.round(1)
    pilot.backend.run(pilot.last(run_id).name)
    pilot.beat(run_id, 11, 12)
    lines += pilot.round(1)
    return [line.split(": ")[1] for line in lines]


@pytest.mark.parametrize("what", ["HBM", "GPU", "software"])
def test_the_simulated_moves_are_those_of_the_real_controller(pilot: Pilot, what: str) -> None:
    world = month(named(what, 3_000.0))
    world.run()
    assert kinds(world) == sailed(pilot, what)
    assert kinds(world)[-1] == "Conclude"


def test_the_size_is_whole_nodes() -> None:
    assert COSTS.nodes(GPUS) == 128 and COSTS.nodes(GPUS + 1) == 129
    assert (COSTS.spares(1_024), COSTS.spares(8_192)) == (3, 20)
