"""Batches, runs and expert records for the tests of the services, made of the real wire's own values."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from agents.readings import GPU_METRICS, NIC_METRICS, ExpertRecord, Fault, HeartbeatFile, StepRecord, fault_id
from agents.wire import Batch, Columns
from controlplane.services.admission import Admitted
from controlplane.services.commit import Committed, commit
from controlplane.store import telemetry
from controlplane.store.engine import Store
from controlplane.store.tables import Attempt, Run

START = 1_800_000_000.0


def columns(kind: str = "gpu", at_s: Sequence[float] = (START,), entities: int = 8, **values: int) -> Columns:
    """Samples with the given raw values of some metrics and 1 for the others, the same for every device."""
    metrics = tuple(metric.name for metric in (GPU_METRICS if kind == "gpu" else NIC_METRICS))
    size = len(at_s) * entities
    return Columns(
        metrics,
        entities,
        array("d", at_s),
        array("d", (at - START for at in at_s)),
        tuple(array("q", [values.get(name, 1)] * size) for name in metrics),
    )


def batch(sequence: int = 0, node: str = "node-1", at_s: float | None = None, **changes: Any) -> Batch:
    """A batch of one moment of a simulated node."""
    at = START + sequence if at_s is None else at_s
    made = Batch(
        node=node,
        boot_id="boot-1",
        sequence=sequence,
        source="simulated",
        simulated=True,
        agent_version="0.1.0",
        sent_s=at,
        sent_monotonic_s=at - START,
        gpu=columns("gpu", [at], gfx_activity_percent=90, power_w=700),
        nic=columns("nic", [at]),
    )
    return replace(made, **changes)


def fault(node: str = "node-1", entity: str = "gpu3", onset_s: float = START, **changes: Any) -> Fault:
    """An uncorrectable memory error."""
    made = Fault(
        id=fault_id(node, "boot-1", "hbm-uncorrectable", entity, onset_s),
        rule="hbm-uncorrectable",
        severity="critical",
        action="restart",
        node=node,
        entity=entity,
        state="firing",
        onset_s=onset_s,
        last_clean_s=onset_s - 1,
        observed_s=onset_s,
        value=1.0,
        threshold=1.0,
        sentence=f"{node} {entity}: one uncorrectable memory error",
    )
    return replace(made, **changes)


def expert(
    step: int, *, run_id: str = "run-1", attempt_no: int = 1, layers: int = 4, counts: Any = None, **changes: Any
) -> ExpertRecord:
    """An expert record of 16 experts and a skip slot, top-1."""
    slots = 17
    found = np.full((layers, slots), 32) if counts is None else np.broadcast_to(counts, (layers, slots))
    bias = np.linspace(-0.01, 0.01, layers * slots) * (step + 1)
    made = ExpertRecord(
        run_id=run_id,
        attempt_no=attempt_no,
        epoch=attempt_no,
        step=step,
        at_s=START + step,
        ranks=1,
        layers=layers,
        slots=slots,
        experts=16,
        top_k=1,
        tokens=int(found[0].sum()),
        dropped=0,
        counts=array("I", found.ravel().tolist()),
        bias=array("f", bias.tolist()),
    )
    return replace(made, **changes)


def step_record(step: int, rank: int = 0, **changes: Any) -> StepRecord:
    """A step's scalars."""
    made = StepRecord(
        run_id="run-1",
        attempt_no=1,
        epoch=1,
        rank=rank,
        step=step,
        at_s=START + step,
        loss=5.0 - step / 100,
        grad_norm=1.0,
        step_seconds=0.5 + rank,
        tokens=2048,
        learning_rate=1e-3,
        data_position=step * 2048,
    )
    return replace(made, **changes)


def heartbeat(rank: int = 0, **changes: Any) -> HeartbeatFile:
    """A heartbeat file as a trainer leaves it."""
    body = {
        "run_id": "run-1",
        "attempt_no": 1,
        "epoch": 1,
        "rank": rank,
        "world": 2,
        "node": "node-1",
        "pid": 1000 + rank,
        "phase": "train",
        "step": 7,
        "first_step": 1,
        "last_step": 7,
        "resumed_from": None,
        "at_s": START,
        "phase_since_s": START - 5,
        "step_seconds_median": 0.5,
        "error": None,
        **changes,
    }
    text = json.dumps(body).encode()
    return HeartbeatFile(f"heartbeat-rank-{rank}.json", START, len(text), text)


def add_run(store: Store, run_id: str = "run-1", attempts: Sequence[tuple[int, Sequence[str]]] = ((1, ()),)) -> None:
    """A run with attempts of (number, nodes); an attempt's epoch is its number, and only the last one is live."""
    with store.write() as session:
        session.add(
            Run(
                id=run_id,
                name=run_id,
                stage="pretrain",
                status="active",
                spec={},
                spec_hash="",
                write_epoch=attempts[-1][0],
                created_s=START,
                created_by="test",
            )
        )
        for number, nodes in attempts:
            session.add(
                Attempt(
                    id=f"{run_id}-{number}",
                    run_id=run_id,
                    no=number,
                    name=f"{run_id}-{number}",
                    state="training" if number == attempts[-1][0] else "superseded",
                    state_since_s=START,
                    spec={},
                    spec_hash="",
                    epoch=number,
                    nodes=list(nodes),
                    created_s=START,
                )
            )


def gpu_samples(store: Store, node: str = "node-1") -> int:
    """How many moments of a node's GPUs are stored."""
    with store.read() as session:
        return telemetry.counted(session, "gpu", node)


def refusing(node: str, error: Exception) -> Callable[..., Committed]:
    """A commit that fails whenever a batch of this node is in the group."""

    def refuse(store: Store, group: Sequence[Admitted], **more: Any) -> Committed:
        if any(one.greeting.name == node for one in group):
            raise error
        return commit(store, group, **more)

    return refuse
