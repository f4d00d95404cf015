"""One run's story as the API tells it: 97 steps, a memory error, a restart without the node, the end of the run."""

from copy import deepcopy
from typing import Any

START = 1_789_997_600.0
FAULT_AT = START + 62.0
NOW = START + 130.0
RUN_ID = "run-01hz"
HOSTILE = "<img src=x onerror=alert(1)>{b}'\"&"

SPEC: dict[str, Any] = {
    "apiVersion": "trimtab/v1",
    "kind": "Job",
    "metadata": {"name": "zaya-toy", "labels": {}},
    "spec": {
        "stage": "pretrain",
        "command": ["{python}", "-m", "torch.distributed.run", "-m", "jobs.zaya.train"],
        "resources": {"nodes": 2, "gpusPerNode": 8, "ranksPerNode": 1},
        "train": {"steps": 160, "checkpointEvery": 8, "seed": 7, "sequences": 16, "length": 128},
        "router": {"experts": 16, "skipBias": -1.0, "balancing": "adamw"},
        "data": {"source": "documentation"},
        "faults": {
            "mode": "act",
            "restarts": 8,
            "graceSeconds": 30,
        },
        "contractLevel": 2,
    },
}


def phases(begin: float, train_end: float | None, end: float | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"phase": "pending", "from_s": begin, "to_s": begin + 3},
        {"phase": "load", "from_s": begin + 3, "to_s": begin + 6},
        {"phase": "train", "from_s": begin + 6, "to_s": train_end},
    ]
    if end is not None and train_end is not None:
        rows.append({"phase": "stopping", "from_s": train_end, "to_s": end})
    return rows


def attempt(no: int, **changes: Any) -> dict[str, Any]:
    first = no == 1
    row: dict[str, Any] = {
        "no": no,
        "name": f"zaya-toy-{no}",
        "state": "superseded" if first else "training",
        "state_since_s": FAULT_AT + 2 if first else START + 74,
        "nodes": ["sim-node-01", "sim-node-02"] if first else ["sim-node-01", "sim-node-03"],
        "excluded_nodes": [] if first else ["sim-node-02"],
        "resume_step": None if first else 88,
        "first_step": 1 if first else 89,
        "last_step": 97 if first else 140,
        "created_s": START if first else START + 65,
        "submitted_s": START,
        "running_s": START + 3,
        "first_step_s": START + 7,
        "ended_s": FAULT_AT + 2 if first else None,
        "end": {"class": "superseded", "fingerprint": "", "message": "superseded by decision"} if first else None,
        "end_class": "superseded" if first else None,
        "phases": phases(START, FAULT_AT, FAULT_AT + 2) if first else phases(START + 65, None, None),
        "epoch": no,
    }
    return {**row, **changes}


def checkpoint(step: int, state: str = "validated", **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": f"cp-{step}",
        "step": step,
        "attempt": 1 if step <= 96 else 2,
        "state": state,
        "state_at_s": START + 7 + 0.55 * step,
        "written_at_s": START + 7.4 + 0.55 * step,
        "bytes": 2_400_000,
        "note": "",
        "path": f"/data/runs/{RUN_ID}/attempt-0001/step-{step:08d}",
        "age_s": NOW - (START + 7.4 + 0.55 * step),
    }
    return {**row, **changes}


DECISION: dict[str, Any] = {
    "id": "dec-7",
    "action": "restart_exclude",
    "mode": "act",
    "state": "verified",
    "reason": "GPU 3 of sim-node-02 reported uncorrectable HBM errors; restart without the node.",
    "rule": "hbm_uncorrectable",
    "excluded_nodes": ["sim-node-02"],
    "checkpoint_id": "cp-88",
    "resume_step": 88,
    "evidence": [],
    "failure_class": "hardware",
    "fingerprint": "hbm",
    "created_s": FAULT_AT + 2.2,
    "executed_s": FAULT_AT + 2.4,
    "verified_s": START + 76,
    "verification": {"sentence": "Step 89 was completed by attempt 2."},
    "incident": 1,
    "attempt_no": 1,
}

RESTART: dict[str, Any] = {
    "no": 1,
    "at_s": FAULT_AT,
    "decision": DECISION,
    "sentence": (
        "GPU 3 of sim-node-02 reported 1,893 uncorrectable memory errors at 13:34:22, so attempt 1 was stopped and "
        "attempt 2 began on sim-node-03 from checkpoint 88. Training was back in 14 s; 9 steps were run twice."
    ),
    "bold": ["GPU 3 of sim-node-02 reported 1,893 uncorrectable memory errors", "sim-node-03", "88", "14 s"],
    "phases": [
        {"name": "detect, decide", "seconds": 2.2, "color_role": "detect"},
        {"name": "drain", "seconds": 0.8, "color_role": "drain"},
        {"name": "place", "seconds": 3.0, "color_role": "place"},
        {"name": "load checkpoint", "seconds": 4.0, "color_role": "load"},
        {"name": "first step", "seconds": 4.0, "color_role": "first_step"},
        {"name": "again", "seconds": 5.0, "color_role": "again"},
    ],
    "steps_again": 9,
    "gpu_hours_lost": 0.08,
    "back_after_s": 14.0,
    "evidence": [
        {"kind": "fault", "id": "f-1", "label": "ECC 0 → 1,893 GPU 3", "sentence": "HBM uncorrectable rose"},
        {"kind": "kernel", "id": "k-1", "label": "kernel log 3 lines", "sentence": "amdgpu 0000:c5:00.0"},
        {"kind": "decision", "id": "dec-7", "label": "decision dec-7", "sentence": "2 options refused"},
        {"kind": "verification", "id": "v-1", "label": "first step 89 as planned", "sentence": "manifest step + 1"},
    ],
    "fault": {"id": "f-1", "node": "sim-node-02", "entity": "gpu3", "onset_s": FAULT_AT},
    "incident": 1,
    "before": {"no": 1, "last_step": 97},
    "after": {"no": 2, "first_step": 89, "resume_step": 88},
}

TIMELINE: list[dict[str, Any]] = [
    {
        "at_s": FAULT_AT,
        "lane": "hardware",
        "kind": "fault",
        "sentence": "Uncorrectable ECC on GPU 3 of sim-node-02",
        "detail": "counter 0 → 1,893 in one sample",
        "level": "fault",
        "link": {"kind": "incident", "id": "1"},
    },
    {
        "at_s": FAULT_AT + 1.8,
        "lane": "rule",
        "kind": "incident",
        "sentence": "Rule hbm_uncorrectable matched, incident opened",
        "detail": "",
        "level": "info",
        "link": {"kind": "incident", "id": "1"},
    },
    {
        "at_s": FAULT_AT + 2.2,
        "lane": "rule",
        "kind": "decision",
        "sentence": "Decided: restart without sim-node-02 from 88",
        "detail": "restart in place refused",
        "level": "info",
        "link": {"kind": "decision", "id": "dec-7"},
    },
    {
        "at_s": START + 76,
        "lane": "run",
        "kind": "attempt",
        "sentence": "First step is 89, as planned",
        "detail": "attempt 2",
        "level": "ok",
        "link": None,
    },
]

WHY: dict[str, Any] = {"run": RUN_ID, "restarts": [RESTART], "waits": "", "timeline": TIMELINE}
NO_WHY: dict[str, Any] = {"run": RUN_ID, "restarts": [], "waits": "", "timeline": []}

ADVICE: dict[str, Any] = {
    "sentence": "1,024 GPUs are stopped by a fault about once in 2 days, so a checkpoint each 421 steps loses least.",
    "interval_s": 842.0,
    "interval_steps": 421,
    "young_daly_s": 844.2,
    "spares": 2,
    "mtbf_s": 178_161.3,
    "ettr_percent": 98.58,
    "lost": [{"cause": "checkpoints", "percent": 0.23}],
    "set": {"interval_steps": 8, "interval_s": 16.0, "ettr_percent": 88.4},
    "stops_expected": 1.8,
    "lost_a_stop_gpu_h": 62.6,
    "inputs": [
        {"name": "GPUs", "value": 1024, "unit": "", "source": "spec"},
        {"name": "a stop each", "value": 50677.0, "unit": "GPU-hours", "source": "Llama 3"},
        {"name": "a step takes", "value": 2.0, "unit": "s", "source": "measured"},
        {"name": "a checkpoint blocks", "value": 2.0, "unit": "s", "source": "assumed"},
    ],
}

INCIDENT: dict[str, Any] = {
    "number": 1,
    "label": "INC-0001",
    "rule": "hbm_uncorrectable",
    "severity": "critical",
    "state": "open",
    "title": "Uncorrectable HBM errors on GPU 3 of sim-node-02",
    "node": "sim-node-02",
    "gpu": 3,
    "entity": "gpu3",
    "run": RUN_ID,
    "opened_s": FAULT_AT + 1.8,
    "age_s": 66.0,
    "owner": None,
    "acked_s": None,
    "resolved_s": None,
    "reopened": 0,
    "action": "drain",
}

INCIDENT_VIEW: dict[str, Any] = {
    **INCIDENT,
    "sentence": {
        "lead": "The memory of GPU 3 on sim-node-02 failed at 13:34:22.",
        "rest": "The system moved the run to sim-node-03; training was back in 14 s.",
        "left": "reset or replace the GPU.",
    },
    "tiles": [
        {"label": "time to detect", "value": "1.8", "unit": "s", "context": "target 3 s", "level": "ok"},
        {"label": "time to train again", "value": "14", "unit": "s", "context": "", "level": "ok"},
        {"label": "work lost", "value": "0.08", "unit": "GPU-hours", "context": "9 steps again", "level": "ok"},
    ],
    "timeline": TIMELINE,
    "faults": [
        {"id": "f-1", "rule": "hbm_uncorrectable", "node": "sim-node-02", "entity": "gpu3", "onset_s": FAULT_AT}
    ],
    "decisions": [DECISION],
    "deliveries": [
        {"channel": "ops", "state": "told", "told_s": FAULT_AT + 3.1, "tries": 1, "last_error": None},
        {"channel": "pager", "state": "ready", "told_s": None, "tries": 2, "last_error": "connection refused"},
    ],
    "kernel": [
        {
            "at_s": FAULT_AT,
            "priority": 3,
            "text": "amdgpu 0000:c5:00.0: uncorrectable hardware errors detected in umc block",
            "pci_address": "0000:c5:00.0",
        },
        {"at_s": FAULT_AT, "priority": 6, "text": "socket 3, hbm stack 5: 1893 new errors", "pci_address": None},
    ],
    "series": {
        "t": [FAULT_AT - 20 + second for second in range(40)],
        "v": [0.0 if second < 20 else 1893.0 for second in range(40)],
        "unit": "errors",
        "title": "GPU 3, uncorrectable errors",
    },
    "blast_radius": {
        "rank": 1,
        "world": 4,
        "block_share": 0.253,
        "steps": [1180, 1243],
        "fullest": [{"layer": 23, "share": 0.31}, {"layer": 4, "share": 0.28}],
        "sentence": "Rank 1 holds experts 4 to 7 of layers 0 to 39, the only copy: 25.3 % of the tokens.",
    },
    "cli": [f"trimtab job why {RUN_ID}", "trimtab incident ack 1"],
    "actions": [
        {"verb": "uncordon", "label": "Return to service…", "enabled": False, "why": "Off until the errors are gone."},
        {
            "verb": "cordon",
            "label": "Cordon sim-node-02…",
            "enabled": True,
            "why": "No new attempt will be placed on it.",
        },
    ],
}


def run_row(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": RUN_ID,
        "name": "zaya-toy",
        "stage": "pretrain",
        "status": "active",
        "desired": "run",
        "attempt": 2,
        "nodes": ["sim-node-01", "sim-node-03"],
        "gpus": 16,
        "step": 140,
        "steps": 160,
        "progress": 0.875,
        "eta": {"low_s": 11.0, "high_s": 16.0},
        "tokens_per_s": 3720.0,
        "loss": 1.62,
        "created_s": START,
        "created_by": "admin",
        "reason": "",
        "backend": "local",
        "age_s": 0.8,
        "simulated": True,
    }
    return {**row, **changes}


def run_view(**changes: Any) -> dict[str, Any]:
    view: dict[str, Any] = {
        **run_row(),
        "spec": deepcopy(SPEC),
        "yaml": "apiVersion: trimtab/v1\nkind: Job\n",
        "attempts": [attempt(1), attempt(2)],
        "decisions": [DECISION],
        "incidents": [INCIDENT],
        "checkpoints": [
            checkpoint(step, "tainted" if step == 96 else "validated", note="suspicion window" if step == 96 else "")
            for step in range(136, 79, -8)
        ],
        "goodput": {
            "percent": 84.2,
            "productive_gpu_h": 0.48,
            "lost": [{"cause": "hardware", "phase": "load", "gpu_h": 0.04, "seconds": 9.0}],
            "unattributed_percent": 0.4,
        },
        "step_seconds": {"median": 0.55, "p95": 0.61, "slowest_rank": 1},
        "last_checkpoint": checkpoint(136),
        "advice": ADVICE,
        "parent": None,
        "diff": [],
    }
    return {**view, **changes}


def new_run_view() -> dict[str, Any]:
    """A run just submitted: nothing is known about it yet."""
    return run_view(
        status="queued",
        attempt=0,
        nodes=[],
        step=None,
        progress=None,
        eta=None,
        tokens_per_s=None,
        loss=None,
        attempts=[],
        decisions=[],
        incidents=[],
        checkpoints=[],
        goodput={"percent": None, "productive_gpu_h": 0.0, "lost": [], "unattributed_percent": None},
        step_seconds={"median": None, "p95": None, "slowest_rank": None},
        last_checkpoint=None,
    )


def steps() -> dict[str, Any]:
    def part(no: int, first: int, last: int, begin: float) -> dict[str, Any]:
        numbers = list(range(first, last + 1))
        return {
            "no": no,
            "step": numbers,
            "at_s": [begin + 0.55 * index for index in range(len(numbers))],
            "loss": [1.2 + 4.0 * 0.985**number for number in numbers],
            "tokens_per_s": [3700.0 + number % 7 for number in numbers],
            "grad_norm": [1.0] * len(numbers),
            "step_seconds": [0.55] * len(numbers),
        }

    return {"attempts": [part(1, 1, 97, START + 7), part(2, 89, 140, START + 76)], "tokens_per_step": 2048}


TEMPLATE_NAME = "toy"
VALIDATION: dict[str, Any] = {
    "problems": [],
    "checks": [
        {"level": "ok", "name": "nodes", "sentence": "2 of 4 healthy nodes asked for"},
        {"level": "warn", "name": "data", "sentence": "the text is small: 1.2 epochs"},
    ],
    "sentence": "2 nodes would start at once; how long it runs is not known before the first run.",
    "candidates": [
        {"node": "sim-node-01", "ok": True, "reason": ""},
        {"node": "sim-node-02", "ok": False, "reason": "cordoned: uncorrectable HBM errors"},
        {"node": "sim-node-03", "ok": True, "reason": ""},
    ],
    "yaml": "",
    "gpu_hours": None,
    "queue": None,
    "advice": ADVICE,
    "cluster": None,
}
RULES: list[dict[str, Any]] = [
    {
        "id": "hbm_uncorrectable",
        "severity": "critical",
        "action": "drain",
        "runs_in": "agent",
        "sentence": "the HBM counter rose",
    },
    {"name": "thermal", "severity": "warning", "action": "alert", "sentence": "hotspot above 105 °C for 30 s"},
]
CHANNELS: list[dict[str, Any]] = [
    {"name": "ops", "kind": "webhook", "url": "https://ops.example/hook", "enabled": True}
]
