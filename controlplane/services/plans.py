"""What a backend is handed for an attempt: its plan, made of the run's and the attempt's rows, and where its files lie.

Pure: it opens nothing and makes no folder. The preflight makes the same plan of rows that are never stored, so that
what is shown before a submission is what is sent after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.backends.base import AttemptPlan
from controlplane.store.tables import Attempt, Run
from jobs import commands
from jobs.layouts.registry import LAYOUTS
from jobs.spec import JobSpec

NOBODY = "dryrun"
"""ends the name of a run that is only thought of; the endings of real ones have no u"""


@dataclass(frozen=True, slots=True)
class Places:
    """Where runs live on disk and where their trainers find the server."""

    runs: Path
    ingest_url: str
    ca_file: str = ""
    """what trainers on this machine check the server's certificate by"""

    def run(self, run_id: str) -> Path:
        """The folder of a run."""
        return self.runs / run_id

    def attempt(self, run_id: str, no: int) -> Path:
        """The folder of an attempt's checkpoints; it belongs to that attempt alone."""
        return self.run(run_id) / f"attempt-{no:04d}"

    def prepared(self, lifecycle_id: str, stage: str) -> Path:
        """The folder into which the preparing jobs of a stage write, whichever run they are."""
        return self.runs / lifecycle_id / stage / "prepared"

    def lineage(self, run_id: str) -> Path:
        """The file that tells a run where its checkpoint comes from."""
        return self.run(run_id) / "lineage.json"

    def token(self, run_id: str, no: int) -> Path:
        """The file that holds an attempt's trainer token."""
        return self.run(run_id) / f"token-{no:04d}"


def plan_of(places: Places, run: Run, attempt: Attempt) -> AttemptPlan:
    """The plan of an attempt as its rows say."""
    spec = attempt.spec["spec"]
    train = {**spec["train"]}
    role = str(attempt.spec.get("role") or "")
    prepared = places.prepared(run.lifecycle_id, run.stage) if role and run.lifecycle_id else ""
    lineage = places.lineage(run.id) if role in ("evaluate", "release") else ""
    environment = {
        "TRIMTAB_RUN_ID": run.id,
        "TRIMTAB_LIFECYCLE_ID": run.lifecycle_id or "",
        "TRIMTAB_STAGE": run.stage,
        "TRIMTAB_ATTEMPT": str(attempt.no),
        "TRIMTAB_ATTEMPT_NAME": attempt.name,
        "TRIMTAB_EPOCH": str(attempt.epoch),
        "TRIMTAB_RUN_DIR": str(places.run(run.id)),
        "TRIMTAB_CHECKPOINT_DIR": str(places.attempt(run.id, attempt.no)),
        "TRIMTAB_RESUME_FROM": str(attempt.spec.get("resume_from") or ""),
        "TRIMTAB_ROLE": role,
        "TRIMTAB_INIT_FROM": str(attempt.spec.get("init_from") or ""),
        "TRIMTAB_INIT_HASH": str(attempt.spec.get("init_hash") or ""),
        "TRIMTAB_PREPARED_DIR": str(prepared),
        "TRIMTAB_LINEAGE_JSON": str(lineage),
        "TRIMTAB_SKIP_STEPS": str(attempt.spec.get("skip_steps") or ""),
        "TRIMTAB_GRACE_SECONDS": str(spec["faults"]["graceSeconds"]),
        "TRIMTAB_INGEST_URL": places.ingest_url,
        "TRIMTAB_TOKEN_FILE": str(places.token(run.id, attempt.no)),
        "TRIMTAB_SEED": str(train.get("seed", 0)),
        "TRIMTAB_TRAIN_JSON": json.dumps(train),
        "TRIMTAB_ROUTER_JSON": json.dumps(spec.get("router", {})),
        "TRIMTAB_DATA_JSON": json.dumps(spec.get("data", {})),
        **_kubeflow(places, run, attempt),
    }
    command, theirs = _worded(spec, environment)
    return AttemptPlan(
        name=attempt.name,
        run_uid=run.uid,
        attempt_no=attempt.no,
        spec_hash=attempt.spec_hash,
        nodes=tuple(attempt.nodes),
        ranks_per_node=int(spec["resources"]["ranksPerNode"]),
        command=command,
        environment={**theirs, **environment},
        node_count=int(spec["resources"]["nodes"]),
        gpus_per_node=int(spec["resources"]["gpusPerNode"]),
        grace_s=float(spec["faults"]["graceSeconds"]),
        excluded=tuple(attempt.excluded_nodes),
        placing={name: str(value) for name, value in (spec.get("kubernetes") or {}).items() if value},
    )


def _kubeflow(places: Places, run: Run, attempt: Attempt) -> dict[str, str]:
    """Where a trainer that knows Kubeflow Trainer's protocol reports, without a change to its code."""
    url = f"{places.ingest_url.rstrip('/')}/api/v1/runs/{run.id}/kubeflow/status"
    authority = {"KUBEFLOW_TRAINER_SERVER_CA_CERT": places.ca_file} if places.ca_file else {}
    token = {"KUBEFLOW_TRAINER_SERVER_TOKEN": str(places.token(run.id, attempt.no))}
    return {"KUBEFLOW_TRAINER_SERVER_URL": url, **token, **authority}


def _worded(spec: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The command, and the variables of a trainer that is not ours; with a layout their places are filled in."""
    trainer, command = spec.get("trainer") or {}, tuple(spec["command"])
    theirs = dict(trainer.get("environment") or {})
    layout = LAYOUTS.get(trainer.get("layout") or "")
    if layout is None:
        return command, theirs
    resources, resume = spec["resources"], environment["TRIMTAB_RESUME_FROM"]
    values = {
        "checkpoint_dir": environment["TRIMTAB_CHECKPOINT_DIR"],
        "run_dir": environment["TRIMTAB_RUN_DIR"],
        "resume_from": resume,
        "steps": str(spec["train"]["steps"]),
        "checkpoint_every": str(spec["train"].get("checkpointEvery", "")),
        "seed": environment["TRIMTAB_SEED"],
        "nodes": str(resources["nodes"]),
        "gpus_per_node": str(resources["gpusPerNode"]),
        "ranks_per_node": str(resources["ranksPerNode"]),
        "attempt": environment["TRIMTAB_ATTEMPT"],
    }
    words = layout.resume(Path(resume)) if resume else ()
    filled = {name: commands.filled(text, values) for name, text in theirs.items()}
    return commands.words(command, values, words), filled


def first_plan(places: Places, spec: JobSpec, barred: Sequence[str] = ()) -> AttemptPlan:
    """The plan of the first attempt that this spec would get without these nodes, under a name that no run has."""
    run_id = f"{spec.name}-{NOBODY}"
    run = Run(id=run_id, name=spec.name, stage=spec.spec.stage, uid=NOBODY, lifecycle_id=NOBODY)
    attempt = Attempt(
        no=1,
        name=f"{run_id}-1",
        epoch=1,
        spec=spec.to_dict(),
        spec_hash=spec.hash(),
        nodes=[],
        excluded_nodes=sorted(barred),
    )
    return plan_of(places, run, attempt)
