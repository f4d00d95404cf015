"""What a trainer posts to Kubeflow Trainer's status route, as a report of ours.

The body is `{"trainerStatus": {"progressPercentage", "estimatedRemainingSeconds", "metrics": [{"name", "value"}]}}`,
values as text. transformers' KubeflowCallback adds the metrics current_step and total_steps, and whatever the Trainer
logged last; it posts at most each 5 s. Its closing message says 100 percent however the training ended, so progress is
what the steps say where there are steps. Source: transformers/integrations/integration_utils.py of 5.24;
kubeflow/trainer, TrainJobRuntimeStatus.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from controlplane.services.reports import Report
from controlplane.services.runs import RunNotFound, StaleTrainer
from controlplane.store import runs
from controlplane.store.engine import Session
from jobs.steps import of_mapping, real

BY = "kubeflow"
_NAMES = ("loss", "grad_norm", "learning_rate")


def report(progress: float | None, remaining_s: float | None, metrics: Iterable[tuple[str, str]]) -> Report:
    """A report of one message; a metric that is no number is left out."""
    numbers = {name: number for name, value in metrics if (number := real(value)) is not None}
    found: Mapping[str, Any] = {"step": _step(numbers), **{name: numbers.get(name) for name in _NAMES}}
    step = of_mapping(found)
    return Report(BY, [step] if step is not None else [], progress, remaining_s, numbers)


def _step(numbers: Mapping[str, float]) -> int | None:
    value = numbers.get("current_step")
    return int(value) if value is not None and value.is_integer() else None


def refuse_stale(session: Session, run_id: str, epoch: int) -> None:
    """RunNotFound; StaleTrainer for a trainer of a past epoch."""
    run = runs.get(session, run_id)
    if run is None or run.id != run_id:
        raise RunNotFound(f"there is no run {run_id}")
    if run.write_epoch != epoch:
        raise StaleTrainer(f"{run_id} is at write epoch {run.write_epoch}; epoch {epoch} may no longer report")
