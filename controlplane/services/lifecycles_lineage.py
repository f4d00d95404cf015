"""Where checkpoints come from: a graph of hashes over the runs of a lifecycle and of those that it was cloned from.

Nodes are checkpoints; edges lead from what a run began with (init), went on from (resumed) or had saved before
(parent). A branch that was made from a tainted checkpoint is tainted with it. The same story, a stage a line, is the
document that an evaluation or a release is given (TRIMTAB_LINEAGE_JSON).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from controlplane.store import lifecycles, runs
from controlplane.store.engine import Session
from controlplane.store.lifecycles import Executed
from controlplane.store.tables import Attempt, Checkpoint, LifecycleStage, Run, StageRun
from jobs.lifecycle import Lifecycle, parse_lifecycle

Json = dict[str, Any]
MOST_A_RUN = 50
"""checkpoints of a run that are all shown; of more only those that something hangs on"""
GENERATIONS = 64


def graph(session: Session, found: Executed) -> Json:
    """The lineage of a lifecycle. API: lifecycles/{id}/lineage."""
    story = _Story(session, found)
    story.gather()
    return {
        "lifecycle": {"id": found.id, "name": found.state.name},
        "stages": [_line(session, found, one) for one in found.stages],
        "nodes": story.nodes(),
        "edges": story.edges(),
        "aliases": [{"alias": one.alias, "checkpoint_hash": one.checkpoint_hash} for one in story.aliases],
    }


class _Story:
    """The runs whose checkpoints are shown, and what hangs on which of them."""

    def __init__(self, session: Session, found: Executed) -> None:
        self.session, self.found = session, found
        self.aliases = lifecycles.aliases(session, found.state.name)
        self.works: dict[str, tuple[Run, StageRun]] = {}
        self.saved: dict[str, list[Checkpoint]] = {}
        self.attempts: dict[str, list[Attempt]] = {}
        self.key: set[str] = {one.checkpoint_hash for one in self.aliases}
        for stage in found.stages:
            self.key |= {stage.init_hash, stage.candidate_hash}
        self.by_id: dict[str, Checkpoint] = {}

    def gather(self) -> None:
        new = [one.run.id for one in lifecycles.runs_of(self.session, self.found.id) if one.work.role == "train"]
        for stage in self.found.stages:
            new += [stage.candidate_run_id] if stage.candidate_run_id else []
        for _ in range(GENERATIONS):
            new = [one for one in dict.fromkeys(new) if one not in self.works]
            if not new:
                return
            new = [source for one in new for source in self._take(one)]

    def _take(self, run_id: str) -> list[str]:
        """Adds a run; the runs that it began from or continues."""
        run, work = runs.get(self.session, run_id), lifecycles.work_of(self.session, run_id)
        if run is None or work is None:
            return []
        self.works[run.id] = (run, work)
        rows = [one for one in runs.checkpoints(self.session, run.id) if one.hash and one.state != "writing"]
        self.saved[run.id], self.attempts[run.id] = rows, runs.attempts(self.session, run.id)
        self.by_id.update({one.id: one for one in rows})
        self.key.add(work.init_hash)
        source = lifecycles.checkpoint(self.session, work.init_hash)
        return [one for one in (source.run_id if source else None, work.continues_id) if one is not None]

    def _shown(self, run_id: str) -> list[Checkpoint]:
        rows = self.saved[run_id]
        if len(rows) <= MOST_A_RUN:
            return rows
        resumed = {one.resume_checkpoint_id for every in self.attempts.values() for one in every}
        ends = {
            max((one.step, one.id) for one in rows if one.attempt_no == no)[1] for no in {r.attempt_no for r in rows}
        }
        return [one for one in rows if one.hash in self.key or one.id in resumed or one.id in ends]

    def nodes(self) -> list[Json]:
        """Every checkpoint that is shown, by its hash once."""
        found: dict[str, Json] = {}
        passed = {one.candidate_hash: one for one in self.found.stages if one.candidate_hash}
        for run_id, (_, work) in self.works.items():
            for row in self._shown(run_id):
                stage = passed.get(row.hash or "")
                found.setdefault(
                    row.hash or "",
                    {
                        "hash": row.hash,
                        "checkpoint_id": row.id,
                        "stage": work.stage,
                        "lifecycle_id": work.lifecycle_id,
                        "run": run_id,
                        "attempt": row.attempt_no,
                        "step": row.step,
                        "state": row.state,
                        "tainted": row.state == "tainted",
                        "reason": row.reason,
                        "at_s": row.written_at_s,
                        "path": row.path,
                        "aliases": [one.alias for one in self.aliases if one.checkpoint_hash == row.hash],
                        "candidate": stage is not None,
                        "passed": stage is not None and stage.state == "passed",
                    },
                )
        return list(found.values())

    def edges(self) -> list[Json]:
        """From older to younger."""
        known = {one["hash"] for one in self.nodes()}
        found: list[Json] = []
        for run_id, (_, work) in self.works.items():
            rows = self._shown(run_id)
            for attempt in self.attempts[run_id]:
                mine = sorted((one for one in rows if one.attempt_no == attempt.no), key=lambda one: one.step)
                if not mine:
                    continue
                source, kind = work.init_hash, "init"
                if attempt.resume_checkpoint_id is not None:
                    resumed = self.by_id.get(attempt.resume_checkpoint_id)
                    source, kind = (resumed.hash or "" if resumed else ""), "resumed"
                if source in known:
                    found.append({"from": source, "to": mine[0].hash, "kind": kind})
                found += [{"from": a.hash, "to": b.hash, "kind": "parent"} for a, b in pairwise(mine)]
        return found


# --- a stage a line ---


def document(session: Session, run: Run) -> Json | None:
    """What a run is told of the way to its checkpoint, oldest stage first; None for a job by itself."""
    work = lifecycles.work_of(session, run.id)
    found = lifecycles.get(session, work.lifecycle_id) if work is not None else None
    if work is None or found is None:
        return None
    plan = parse_lifecycle(found.plan.spec)
    way = set(_way(plan, work.stage))
    stages = [_line(session, found, one) for one in found.stages if one.name in way]
    return {
        "lifecycle": {"id": found.id, "name": found.state.name},
        "run": run.id,
        "checkpoint_hash": work.init_hash,
        "stages": [one for one in stages if one["checkpoint_hash"]],
    }


def _way(plan: Lifecycle, stage: str) -> Sequence[str]:
    """A stage and those whose checkpoints led to it."""
    way = [stage]
    while plan.stage(way[-1]).source:
        way.append(plan.stage(way[-1]).source)
    return way


def _line(session: Session, found: Executed, row: LifecycleStage) -> Json:
    """`metrics` are of the stage's own newest evaluation; `evaluations` are all that anyone made of its checkpoint."""
    evaluations = lifecycles.evaluations(session, row.candidate_hash)
    at = _ran_in(session, found, row)
    own = next((one for one in reversed(evaluations) if (one.lifecycle_id, one.stage) == (at, row.name)), None)
    words = [one for one in lifecycles.approvals(session, at, row.name) if one.used_s is not None]
    source = lifecycles.checkpoint(session, row.init_hash)
    return {
        "stage": row.name,
        "state": row.state,
        "hold": row.hold,
        "checkpoint_hash": row.candidate_hash,
        "parent_hash": row.init_hash,
        "step": row.candidate_step,
        "run": row.candidate_run_id,
        "path": row.candidate_path,
        "inherited": row.inherited,
        "tainted": bool(row.candidate_hash) and bool(lifecycles.tainted(session, [row.candidate_hash])),
        "parent_tainted": source is not None and source.state == "tainted",
        "metrics": _metrics(own) if own is not None else {},
        "evaluations": [
            {"run": one.run_id, "lifecycle_id": one.lifecycle_id, "stage": one.stage, "metrics": metrics}
            for one in evaluations
            if (metrics := _metrics(one))
        ],
        "approvals": [
            {
                "verdict": one.verdict,
                "actor": one.actor,
                "reason": one.reason,
                "at_s": one.at_s,
                "hash": one.checkpoint_hash,
            }
            for one in words
        ],
    }


def _ran_in(session: Session, found: Executed, row: LifecycleStage) -> str:
    """The lifecycle whose runs made and judged a stage's checkpoint: of an inherited one, an earlier lifecycle."""
    while row.inherited and found.state.parent_id is not None:
        parent = lifecycles.get(session, found.state.parent_id)
        before = parent.stage(row.name) if parent is not None else None
        if parent is None or before is None:
            break
        found, row = parent, before
    return found.id


def _metrics(work: StageRun) -> Json:
    """What an evaluation found out about the checkpoint that it was given; a result of another hash is none of it."""
    result = work.result or {}
    return dict(result.get("metrics") or {}) if result.get("checkpoint_hash") == work.init_hash else {}
