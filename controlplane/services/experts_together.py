"""The steps of a run that the alarms judge together, and the window that they make: for alarms and pages. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controlplane.rules.expert_window import ExpertWindow
from controlplane.services.experts_window import MovingWindow
from controlplane.store.expert_records import ExpertStep, Spread


def own(steps: Sequence[ExpertStep]) -> list[ExpertStep]:
    """Those of a run's steps, in order, that the alarms judge together: of the last one's attempt and shape, told by as
    many ranks as the fullest. A step that was given up waiting for lacks a node, and with it perhaps a stage's layers.
    """
    same = [step for step in steps if step.attempt_no == steps[-1].attempt_no and step.shape == steps[-1].shape]
    most = max((step.ranks for step in same), default=0)
    return [step for step in same if step.ranks == most]


def window_of(steps: Sequence[ExpertStep], moving: MovingWindow | None = None) -> ExpertWindow:
    """The window of steps that are judged together, not none; at_s is by their nodes' clock.

    `moving` is a moving window of just these steps: it has their counts and biases in one piece already, and knows the
    design effect, for which the spread would be asked.
    """
    last = steps[-1]
    return ExpertWindow(
        run_id=last.run_id,
        run_name=last.run_id,
        attempt_no=last.attempt_no,
        steps=np.array([step.step for step in steps], np.int64),
        at_s=np.array([step.at_s for step in steps]),
        counts=np.stack([step.counts for step in steps]) if moving is None else moving.each("counts"),
        bias=np.stack([step.bias for step in steps]) if moving is None else moving.each("bias"),
        experts=last.shape.experts,
        top_k=last.shape.top_k,
        spread=spread_of(steps) if moving is None else None,
        expert_parallel=last.expert_parallel,
    )


def spread_of(steps: Sequence[ExpertStep]) -> NDArray[np.float64]:
    """[3, W, L] as the window takes it; zeros where it is not known."""
    none = Spread(*np.zeros((3, steps[0].shape.layers)))
    return np.stack([(step.spread or none).stacked() for step in steps], axis=1)
