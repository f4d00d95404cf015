"""Lifecycles walked on a scripted cluster: stages in order, each from the hash of the one before, gates and people."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.services.lifecycles import LifecycleRefused
from controlplane.store import lifecycles
from jobs.manifest import MANIFEST
from tests.runs.conducting import JOB, Conducting, gate

FULL = (
    {"name": "pretrain", "gate": gate("loss < 2.6"), "promote": "base"},
    {"name": "sft", "prepare": [{"name": "text", "job": JOB}]},
    {"name": "check", "role": "evaluate", "gate": {"require": ["loss < 2.6"]}},
    {"name": "release", "role": "release", "gate": {"require": ["loads == 1"]}, "promote": "best"},
)


def test_a_whole_lifecycle_walks_to_its_end(walk: Conducting) -> None:
    made = walk.begin(*FULL)
    assert walk.walk(made) == "succeeded"
    stages = walk.stages(made)
    assert {one.state for one in stages.values()} == {"passed"}
    base, tuned = walk.hash_of(made, "pretrain"), walk.hash_of(made, "sft")
    assert (stages["pretrain"].candidate_hash, stages["sft"].init_hash) == (base, base)
    assert [stages[name].candidate_hash for name in ("sft", "check", "release")] == [tuned] * 3
    with walk.store.read() as session:
        assert {one.alias: one.checkpoint_hash for one in lifecycles.aliases(session, "walk")} == {
            "base": base,
            "best": tuned,
        }
    order = [(one.work.stage, one.work.role) for one in walk.works(made)]
    assert order == [
        ("pretrain", "train"),
        ("pretrain", "evaluate"),
        ("sft", "prepare"),
        ("sft", "train"),
        ("check", "evaluate"),
        ("release", "release"),
    ]
    assert walk.story(made)[-1] == "walk is done: all 4 stages passed."


@pytest.mark.parametrize("unreadable", ["the run's folder", "the last manifest", "the last contents"])
def test_a_stage_passes_with_its_last_checkpoint_though_the_disk_was_away(walk: Conducting, unreadable: str) -> None:
    made = walk.begin({"name": "a"}, {"name": "b"})
    walk.tick()
    run_id = walk.newest(made, "a").run.id
    walk.train(run_id, 1, 5)
    walk.save(run_id, 5)
    walk.tick()
    directory = walk.save(run_id, 10)
    away = {
        "the run's folder": walk.places.run(run_id),
        "the last manifest": directory / MANIFEST,
        "the last contents": directory / "model.bin",
    }[unreadable]
    kept = away.rename(away.with_name("kept"))
    if unreadable == "the last contents":
        away.write_bytes(b"half")
    elif unreadable != "the run's folder":
        away.symlink_to(away.name)  # opening it is an error of the disk, as a stale handle is
    walk.beat(run_id, 6, 10)
    walk.backend.end(walk.last(run_id).name, "succeeded")
    for _ in range(3):
        walk.tick()
    assert (walk.run(run_id).status, walk.stages(made)["a"].state) == ("succeeded", "training")
    if unreadable != "the run's folder":
        away.unlink()
    kept.rename(away)
    walk.tick()
    assert (walk.stages(made)["a"].state, walk.stages(made)["a"].candidate_step) == ("passed", 10)


def test_each_run_is_told_what_it_is_for(walk: Conducting) -> None:
    made = walk.begin(*FULL)
    walk.walk(made)
    told = {}
    for one in walk.works(made):
        told[one.work.stage, one.work.role] = walk.backend.attempts[walk.last(one.run.id).name].plan.environment
    base, tuned = walk.hash_of(made, "pretrain"), walk.hash_of(made, "sft")
    asked = {key: (env["TRIMTAB_ROLE"], env["TRIMTAB_INIT_HASH"]) for key, env in told.items()}
    assert asked == {
        ("pretrain", "train"): ("train", ""),
        ("pretrain", "evaluate"): ("evaluate", base),
        ("sft", "prepare"): ("prepare", base),
        ("sft", "train"): ("train", base),
        ("check", "evaluate"): ("evaluate", tuned),
        ("release", "release"): ("release", tuned),
    }
    prepared = {told["sft", role]["TRIMTAB_PREPARED_DIR"] for role in ("prepare", "train")}
    assert prepared == {str(walk.places.prepared(made, "sft"))}
    assert told["pretrain", "train"]["TRIMTAB_INIT_FROM"] == ""
    assert Path(told["sft", "train"]["TRIMTAB_INIT_FROM"]).name == "step-00000010"
    assert told["pretrain", "train"]["TRIMTAB_LINEAGE_JSON"] == ""
    lineage = json.loads(Path(told["release", "release"]["TRIMTAB_LINEAGE_JSON"]).read_text())
    assert [
        (one["stage"], one["checkpoint_hash"], one["parent_hash"], one["metrics"]) for one in lineage["stages"]
    ] == [
        ("pretrain", base, "", {"loss": 2.0, "loads": 1.0}),
        ("sft", tuned, base, {}),  # nobody evaluated it there
        ("check", tuned, tuned, {"loss": 2.0, "loads": 1.0}),
    ]
    assert lineage["checkpoint_hash"] == tuned


def test_a_refused_gate_holds_the_stage_until_a_person_approves_with_a_reason(walk: Conducting) -> None:
    walk.metrics["pretrain"] = {"loss": 3.0}
    made = walk.begin(FULL[0], {"name": "sft"})
    assert walk.walk(made) == "active"
    held = walk.held(made)
    assert (held.name, held.hold) == ("pretrain", "refused")
    assert held.reason == "Stage pretrain is held. The gate refuses: loss is 3, loss < 2.6 does not hold."
    assert walk.stages(made)["sft"].state == "waiting"
    with pytest.raises(LifecycleRefused, match="say why"):
        walk.say(made, "pretrain", "approved")
    walk.say(made, "pretrain", "approved", reason="the data changed")
    assert walk.walk(made) == "succeeded"
    assert any(
        "bob approved checkpoint" in one and "against its gate: the data changed" in one for one in walk.story(made)
    )


def test_a_gate_that_asks_for_approval_waits_for_a_person(walk: Conducting) -> None:
    made = walk.begin({"name": "pretrain", "gate": gate(approval=True)}, {"name": "sft"})
    walk.walk(made)
    assert walk.held(made).hold == "approval"
    walk.tick(3600)
    assert walk.held(made).hold == "approval"
    walk.say(made, "pretrain", "approved")
    walk.tick()
    assert walk.stages(made)["pretrain"].state == "passed"


def test_an_approval_is_for_one_hash_and_one_use(walk: Conducting) -> None:
    made = walk.begin({"name": "pretrain", "gate": gate(approval=True)}, {"name": "sft"})
    walk.walk(made)
    old = walk.held(made).candidate_hash
    with pytest.raises(LifecycleRefused, match="is held with checkpoint"):
        walk.say(made, "pretrain", "approved", "ab" * 32)
    walk.retry(made, "pretrain", fresh=True)
    walk.tick()
    walk.walk(made)
    new = walk.held(made).candidate_hash
    assert new != old
    with pytest.raises(LifecycleRefused, match="is held with checkpoint"):
        walk.say(made, "pretrain", "approved", old)
    walk.say(made, "pretrain", "approved", new)
    with pytest.raises(LifecycleRefused, match="is being carried out"):
        walk.say(made, "pretrain", "approved", new)
    walk.tick()
    with walk.store.read() as session:
        (word,) = lifecycles.approvals(session, made)
        assert word.used_s == walk.clock.now()
    other = walk.clone(made, "pretrain")
    walk.walk(other)
    assert walk.held(other).hold == "approval", "an approval was used twice"


def test_a_stale_approval_that_lies_in_the_store_passes_nothing(walk: Conducting) -> None:
    made = walk.begin({"name": "pretrain", "gate": gate(approval=True)})
    walk.walk(made)
    with walk.store.write() as session:
        words = {"stage": "pretrain", "verdict": "approved", "actor": "bob", "checkpoint_hash": "ab" * 32}
        lifecycles.add_approval(session, now=walk.clock.now(), lifecycle_id=made, **words)
    walk.tick()
    assert walk.held(made).hold == "approval"


@pytest.mark.parametrize(
    ("metrics", "claimed", "said"),
    [
        ({"accuracy": 0.5}, "", "loss < 2.6 cannot be judged: the result has no loss"),
        ({"loss": 2.0}, "ab" * 32, "the result is of checkpoint abababababab, not of"),
    ],
)
def test_what_was_not_measured_on_the_candidate_passes_nothing(
    walk: Conducting, metrics: dict[str, float], claimed: str, said: str
) -> None:
    walk.metrics["pretrain"] = metrics
    if claimed:
        walk.says["pretrain"] = claimed
    made = walk.begin(FULL[0])
    walk.walk(made)
    held = walk.held(made)
    assert held.hold == "refused" and said in held.reason


def test_an_evaluation_that_left_nothing_refuses_and_can_be_done_again(walk: Conducting) -> None:
    made = walk.begin(FULL[0])
    walk.walk(made, until="evaluating")
    run_id = walk.newest(made, "pretrain", "evaluate").run.id
    walk.tick()
    walk.end(run_id, "succeeded")
    walk.tick()
    walk.tick()
    assert f"run {run_id} left no result" in walk.held(made).reason
    walk.retry(made, "pretrain", evaluation=True)
    assert walk.walk(made, until="passed") == "active" or walk.state(made).status == "succeeded"
    walk.tick()
    assert [one.work.role for one in walk.works(made)] == ["train", "evaluate", "evaluate"]
    assert walk.state(made).status == "succeeded"


def test_a_person_who_refuses_ends_the_stage_and_what_waits_for_it(walk: Conducting) -> None:
    made = walk.begin(
        {"name": "a", "gate": gate(approval=True)},
        {"name": "b"},
        {"name": "c", "after": ["a", "b"], "from": "b"},
    )
    walk.walk(made)
    walk.say(made, "a", "refused", reason="it babbles")
    walk.walk(made)
    assert {name: one.state for name, one in walk.stages(made).items()} == {
        "a": "failed",
        "b": "cancelled",
        "c": "cancelled",
    }
    assert walk.state(made).status == "failed"
    assert any(one.startswith("bob refused checkpoint") and one.endswith("it babbles.") for one in walk.story(made))
    (word,) = walk.shown(made)["approvals"]
    assert (word["verdict"], word["used_s"] is not None, word["voided_s"]) == ("refused", True, None)


def _cancelled(walk: Conducting, made: str) -> None:
    walk.ask(made, "cancel")


def _tainted(walk: Conducting, made: str) -> None:
    walk.taint(walk.held(made).candidate_hash)


def _approved(walk: Conducting, made: str) -> None:
    walk.say(made, "a", "approved", reason="good enough")


def _refused(walk: Conducting, made: str) -> None:
    walk.say(made, "a", "refused")


@pytest.mark.parametrize(
    ("then", "against", "agreed", "asked"),
    [
        (_cancelled, "refused", "undecided", "undecided"),
        (_tainted, "refused", "undecided", "open"),
        (_approved, "overridden", "passed", "passed"),
        (_refused, "refused", "refused", "refused"),
    ],
)
def test_a_gate_says_what_it_found_whatever_became_of_its_stage(
    walk: Conducting, then: Callable[[Conducting, str], None], against: str, agreed: str, asked: str
) -> None:
    both = {"evaluation": JOB, "require": ["loss < 2.6"], "approval": True}
    for loss, kept, held, after in (
        (3.0, both, "refused", against),
        (2.0, both, "waits", agreed),
        (2.0, gate(approval=True), "waits", asked),
    ):
        walk.metrics["a"] = {"loss": loss}
        made = walk.begin({"name": "a", "gate": kept}, {"name": "b"})
        assert walk.shown(made)["stages"][0]["gate"]["state"] == "open"
        walk.walk(made)
        assert walk.shown(made)["stages"][0]["gate"]["state"] == held
        then(walk, made)
        for _ in range(3):
            walk.tick()
        assert walk.shown(made)["stages"][0]["gate"]["state"] == after, (loss, kept)


def test_branches_run_beside_each_other(walk: Conducting) -> None:
    made = walk.begin(
        {"name": "a"}, {"name": "b"}, {"name": "c", "after": ["a"]}, {"name": "d", "after": ["b", "c"], "from": "c"}
    )
    walk.walk(made, until="passed")
    walk.tick()
    assert {name: one.state for name, one in walk.stages(made).items()} == {
        "a": "passed",
        "b": "training",
        "c": "training",
        "d": "waiting",
    }
    assert walk.walk(made, until="none") == "succeeded"
    assert walk.stages(made)["d"].init_hash == walk.stages(made)["c"].candidate_hash


def test_a_stage_that_starts_afresh_is_given_no_checkpoint(walk: Conducting) -> None:
    made = walk.begin({"name": "a"}, {"name": "b", "from": ""})
    assert walk.walk(made) == "succeeded"
    assert walk.newest(made, "b").work.init_hash == ""
