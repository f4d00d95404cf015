"""What hangs on a checkpoint: what was made from a tainted one, what a clone inherits, where an alias points."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.services import lifecycles_lineage
from controlplane.services.lifecycles import LifecycleNotFound, LifecycleRefused
from controlplane.store import lifecycles
from controlplane.store.tables import Checkpoint
from tests.runs.conducting import JOB, Conducting, gate

A, B = {"name": "a"}, {"name": "b"}
CHECKED = {"name": "a", "gate": gate("loss < 2.6")}
APPROVED = {"name": "a", "gate": gate(approval=True)}


def _held(walk: Conducting) -> str:
    made = walk.begin(APPROVED, B)
    walk.walk(made)
    return made


# --- taint ---


def test_a_checkpoint_that_is_tainted_later_taints_and_holds_what_was_made_from_it(walk: Conducting) -> None:
    made = walk.begin(A, B, {"name": "c"})
    walk.walk(made, until="passed")
    walk.tick()
    run_id = walk.newest(made, "b").run.id
    walk.train(run_id, 1, 5)
    walk.save(run_id, 5)
    walk.tick()
    base = walk.stages(made)["a"].candidate_hash
    walk.taint(base)
    for _ in range(4):
        walk.tick()
    held = walk.held(made)
    assert (held.name, held.hold, walk.run(run_id).status) == ("b", "tainted", "cancelled")
    assert walk.run(run_id).reason == f"cancelled: {held.reason.rstrip('.')}"
    (saved,) = walk.checkpoints(run_id)
    assert (saved.state, saved.reason) == ("tainted", f"its stage began from checkpoint {base[:12]}, which is tainted")
    (told,) = walk.told(made, "stage_held_tainted")
    assert told.data["level"] == "fault" and "is tainted" in told.sentence
    with pytest.raises(LifecycleRefused, match="clone the lifecycle from stage a"):
        walk.retry(made, "b")
    assert walk.shown(made)["stages"][1]["can"] == []
    with pytest.raises(LifecycleRefused, match=r"checkpoint .* of stage a is tainted"):
        walk.clone(made, "b")
    assert walk.walk(walk.clone(made, "a")) == "succeeded"


def test_an_ended_lifecycle_says_what_became_tainted_later_and_what_points_at_it(walk: Conducting) -> None:
    made = walk.begin(A, {**B, "promote": "tuned"})
    assert walk.walk(made) == "succeeded"
    base, tuned = (walk.stages(made)[name].candidate_hash for name in ("a", "b"))
    walk.taint(base)
    walk.tick()
    walk.tick()
    (told,) = walk.told(made, "lifecycle_checkpoint_tainted")
    why = f"its stage began from checkpoint {base[:12]}, which is tainted"
    whole = f"Checkpoint {tuned[:12]} of stage b is tainted: {why}. A person has to move what points at it: tuned."
    assert (told.sentence, told.data["level"]) == (whole, "fault")
    assert [(one["alias"], one["tainted"]) for one in walk.shown(made)["aliases"]] == [("tuned", True)]


def test_a_tainted_candidate_is_neither_approved_nor_promoted(walk: Conducting) -> None:
    made = _held(walk)
    spoilt = walk.held(made).candidate_hash
    walk.say(made, "a", "approved")  # and before that is carried out it is tainted
    walk.taint(spoilt)
    with pytest.raises(LifecycleRefused, match="is tainted: nobody may approve it"):
        walk.say(made, "a", "approved")
    with pytest.raises(LifecycleRefused, match="is tainted and cannot be promoted: its state was computed"):
        walk.promote(made, "base", spoilt)
    walk.tick()
    assert walk.held(made).hold == "tainted"
    walk.retry(made, "a", fresh=True)
    walk.walk(made)
    assert lineage(walk, made)["a"]["approvals"] == []
    walk.say(made, "a", "approved")
    assert walk.walk(made) == "succeeded"
    for named in (made, walk.clone(made, "b")):
        told = [(one["verdict"], one["actor"], one["hash"]) for one in lineage(walk, named)["a"]["approvals"]]
        assert told == [("approved", "bob", walk.stages(made)["a"].candidate_hash)]


def test_a_tainted_base_holds_the_stage_that_was_to_begin_from_it(walk: Conducting) -> None:
    made = walk.begin(
        A,
        {"name": "b", "after": ["a"]},
        APPROVED | {"name": "c", "from": ""},
        {"name": "d", "after": ["b", "c"], "from": "b"},
    )
    walk.walk(made)
    walk.taint(walk.stages(made)["b"].candidate_hash)
    walk.say(made, "c", "approved")
    walk.tick()
    walk.tick()
    assert (walk.held(made).name, walk.held(made).hold) == ("d", "tainted")


# --- what was found out of whom ---


def lineage(walk: Conducting, made: str) -> dict[str, dict[str, Any]]:
    """The lines of the lineage, by stage."""
    with walk.store.read() as session:
        found = lifecycles.get(session, made)
        assert found is not None
        return {one["stage"]: one for one in lifecycles_lineage.graph(session, found)["stages"]}


def test_a_stage_is_told_with_the_figures_of_its_own_evaluation(walk: Conducting) -> None:
    look, out = {"name": "look", "role": "evaluate"}, {"name": "out", "role": "release"}
    made = walk.begin(CHECKED, look, out)
    walk.metrics |= {"a": {"loss": 3.0}, "look": {"loss": 9.0, "rsa": 0.5}}
    walk.walk(made)
    walk.metrics["a"] = {"loss": 2.0}
    walk.retry(made, "a", evaluation=True)
    assert walk.walk(made) == "succeeded"
    rows = lineage(walk, made)
    assert {name: row["metrics"] for name, row in rows.items()} == {
        "a": {"loss": 2.0},
        "look": {"loss": 9.0, "rsa": 0.5},
        "out": {},
    }
    walk.metrics["look"] = {"loss": 7.0}
    other = walk.clone(made, "look")
    assert walk.walk(other) == "succeeded"
    third = walk.clone(other, "out")
    for clone in (other, third):
        figures = {name: row["metrics"] for name, row in lineage(walk, clone).items()}
        assert figures == {"a": {"loss": 2.0}, "look": {"loss": 7.0}, "out": {}}
    told = [
        (one["lifecycle_id"], one["stage"], one["metrics"]["loss"]) for one in lineage(walk, third)["a"]["evaluations"]
    ]
    assert told == [(made, "a", 3.0), (made, "a", 2.0), (made, "look", 9.0), (other, "look", 7.0)]


# --- clones, aliases ---


def test_a_clone_inherits_what_its_first_stage_needs(walk: Conducting) -> None:
    made = walk.begin({**A, "promote": "base"}, CHECKED | {"name": "b"}, {"name": "c"})
    walk.metrics["b"] = {"loss": 3.0}
    walk.walk(made)
    base = walk.stages(made)["a"].candidate_hash
    walk.metrics["b"] = {"loss": 1.0}
    other = walk.clone(made, "b")
    inherited = walk.stages(other)["a"]
    assert (inherited.state, inherited.inherited, inherited.candidate_hash) == ("passed", True, base)
    assert walk.state(other).parent_id == made
    assert walk.walk(other) == "succeeded"
    assert [one.work.stage for one in walk.works(other)] == ["b", "b", "c"]
    assert walk.newest(other, "b").work.init_hash == base
    more = ({**A, "promote": "base"}, CHECKED | {"name": "b"}, {"name": "new"}, {"name": "c", "after": ["new"]})
    third = walk.clone(other, "c", *more[:2], more[3] | {"after": ["b"]})
    assert [one.inherited for one in walk.stages(third).values()] == [True, True, False]
    with pytest.raises(LifecycleRefused, match="stage new is not in the lifecycle that is cloned"):
        walk.clone(other, "c", *more)
    for begin, said in (("c", "stage b is held, only a passed one"), ("z", "has no stage z")):
        with pytest.raises((LifecycleRefused, LifecycleNotFound), match=said):
            walk.clone(made, begin)


def test_a_clone_inherits_only_what_its_own_plan_would_have_done(walk: Conducting) -> None:
    beside, below = {"name": "c", "after": ["a"], "from": "a"}, {"name": "d", "after": ["c"], "from": "c"}
    made = walk.begin(CHECKED, B, beside, below)
    assert walk.walk(made) == "succeeded"
    longer = {"job": JOB | {"train": {"steps": 20, "checkpointEvery": 5}}}
    rest = ({**B, "after": ["a"], "from": "a"}, beside, below)
    for changed in (CHECKED | longer, CHECKED | {"gate": gate("loss < 0.1")}, CHECKED | {"gate": None}):
        with pytest.raises(LifecycleRefused, match="stage a is planned differently from the lifecycle that is cloned"):
            walk.clone(made, "b", changed, *rest)
    same = walk.clone(made, "b", CHECKED, *rest)
    assert [one.inherited for one in walk.stages(same).values()] == [True, False, True, True]
    other = walk.clone(made, "b", CHECKED, rest[0], beside | longer, below)
    assert [one.inherited for one in walk.stages(other).values()] == [True, False, False, False]


def test_a_clone_inherits_no_stage_without_a_checkpoint_that_another_starts_from(walk: Conducting) -> None:
    made = walk.begin(A, B)
    walk.walk(made)
    with walk.store.write() as session:
        found = lifecycles.locked(session, made)
        assert found is not None
        found.stages[0].candidate_hash = ""  # as of a training from which nothing was asked when it ended
    with pytest.raises(LifecycleRefused, match="stage a left no checkpoint"):
        walk.clone(made, "b")


def test_an_alias_moves_by_a_persons_word_and_says_so(walk: Conducting) -> None:
    made = walk.begin({**A, "promote": "base"}, B)
    walk.walk(made)
    base, tuned = (walk.stages(made)[name].candidate_hash for name in ("a", "b"))
    told = walk.promote(made, "base", tuned[:12])
    assert dict(told) == {"alias": "base", "owner": "walk", "checkpoint_hash": tuned, "before": base}
    with walk.store.read() as session:
        assert [
            (one.before_hash, one.checkpoint_hash, one.actor) for one in lifecycles.alias_moves(session, "walk")
        ] == [
            ("", base, "controller"),
            (base, tuned, "bob"),
        ]
    assert walk.story(made)[-1].startswith(
        f"Alias base of walk points at checkpoint {tuned[:12]}, before at {base[:12]}"
    )
    other = walk.submit()
    with walk.store.write() as session:  # the same bytes, found spoilt in another run
        row = lifecycles.checkpoint(session, tuned)
        assert row is not None
        same = {column.name: getattr(row, column.name) for column in row.__table__.columns}
        session.add(Checkpoint(**same | {"id": "copied", "run_id": other, "path": "/copied", "state": "tainted"}))
    with pytest.raises(LifecycleRefused, match="is tainted in another place"):
        walk.promote(made, "base", tuned)
    for wrong, said in (("ab" * 32, "has no checkpoint"), (base[:4], "8 digits at least")):
        with pytest.raises(LifecycleRefused, match=said):
            walk.promote(made, "base", wrong)
