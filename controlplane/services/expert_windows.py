"""The window of expert records that the alarms judge, gathered from the store for one live attempt."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from controlplane.rules.book import RuleBook
from controlplane.rules.expert_window import TREND_STEPS, ExpertWindow, Resumed
from controlplane.rules.experts import mean_of_known
from controlplane.services import experts_together
from controlplane.store import experts, runs
from controlplane.store.engine import Session
from controlplane.store.expert_records import ExpertStep
from controlplane.store.watch import LiveAttempt

WINDOW_STEPS = 64


def of_attempt(session: Session, attempt: LiveAttempt, offset: float, book: RuleBook) -> ExpertWindow | None:
    """The newest records of this attempt that have one shape and were told by as many ranks; None while it has none.

    offset: the server's clock less its nodes'.
    """
    recent = experts.recent(session, attempt.run_id, limit=WINDOW_STEPS)
    same = experts_together.own([step for step in recent if step.attempt_no == attempt.no])
    if not same:
        return None
    last = same[-1]
    mismatch = np.array([step.route_mismatch for step in same], np.float64)
    is_learning_from_rollouts = bool(np.isfinite(mismatch).any())
    window = experts_together.window_of(same)
    return replace(
        window,
        run_name=attempt.run_name,
        at_s=window.at_s + offset,
        cv_before=cv_before(session, last),
        balanced_until=_balanced_until(session, attempt.run_id),
        resumed=_resumed(session, attempt, last, int(book["expert-bias-lost"].thresholds["told_steps"])),
        mismatch=mismatch if is_learning_from_rollouts else np.zeros(0),
        mismatch_usual=_usual_mismatch(session, attempt) if is_learning_from_rollouts else math.nan,
    )


def cv_before(session: Session, last: ExpertStep) -> NDArray[np.float64] | None:
    """[L] the mean CV of the window of TREND_STEPS before a step's, in its attempt; None if it was not whole."""
    end = last.step - TREND_STEPS
    told = experts.read_statistics(session, last.run_id, ("cv",), first=end - WINDOW_STEPS + 1, last=end)
    own = told.attempt_no == last.attempt_no
    if own.sum() < WINDOW_STEPS // 2:
        return None
    return mean_of_known(told.values["cv"][:, own], axis=1)


def _balanced_until(session: Session, run_id: str) -> int | None:
    """The step at which the job's own schedule ends balancing: `router.balancingUntil` of its spec."""
    run = runs.get(session, run_id)
    until = run.spec["spec"].get("router", {}).get("balancingUntil") if run is not None else None
    return int(until) if isinstance(until, int | float) and until > 0 else None


def _resumed(session: Session, attempt: LiveAttempt, last: ExpertStep, told_steps: int) -> Resumed | None:
    """How the attempt took up its checkpoint; None if it began at the beginning, or longer than `told_steps` ago."""
    row = runs.attempt(session, attempt.run_id, attempt.no)
    if row is None or row.resume_checkpoint_id is None or row.first_step is None:
        return None
    checkpoint = runs.checkpoint(session, row.resume_checkpoint_id)
    if checkpoint is None or last.step >= row.first_step + told_steps:
        return None
    head = _head(checkpoint.bias_checksum)
    recorded = begun = None
    if not (last.start_bias and last.start_bias == head):
        recorded = experts.stored_step(session, (checkpoint.run_id, checkpoint.attempt_no, checkpoint.step))
        begun = experts.stored_step(session, (attempt.run_id, attempt.no, row.first_step))
    return Resumed(
        first_step=row.first_step,
        start_bias=last.start_bias,
        checkpoint_bias=head,
        before=recorded.bias if recorded is not None else None,
        begun=begun.bias if begun is not None else None,
    )


def _head(checksum: str) -> int:
    """The head of a manifest's checksum as the probe tells it; 0 of one that is no SHA-256 in hexadecimal."""
    return int(checksum[:15], 16) if re.fullmatch(r"[0-9a-f]{64}", checksum) else 0


def _usual_mismatch(session: Session, attempt: LiveAttempt) -> float:
    """The mean share of differing choices in the attempt's first steps that tell it; NaN of none."""
    told = experts.read_scalars(session, (attempt.run_id, attempt.no), "route_mismatch", limit=WINDOW_STEPS)
    known = told[np.isfinite(told)]
    return float(known.mean()) if len(known) else math.nan
