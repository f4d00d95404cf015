"""What other loggers cost the training thread for the same counted loads: TensorBoard, MLflow, W&B and trackio.

Two ways each, as far as it has them. `every expert`: all that the probe keeps of the counts, one value an expert (a
tensor of counts and one of biases where the logger takes tensors). `summary`: what people log instead, the largest and
the mean load of each layer, which is all that can be looked at later. Each keeps its data in a local folder and has its
telemetry off; nothing leaves this machine. Its caller is a process of its own (probe_rounds).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.probe_rounds import ROOT, Caller, Step, caller, serve

LOGGERS = ROOT / ".cache" / "frameworks" / "loggers" / "bin" / "python"
"""The environment of `tools/frameworks.py install loggers`."""

BATCH = 1000
"""MLflow's largest number of metrics in one call."""
OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "NO_PROXY": "127.0.0.1,localhost",
    **{f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")},  # whoever tries is refused here
}
HOMES = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR", "HF_HOME")
"""Variables that name a place to write to: the bench's folder."""
Log = Callable[[dict[str, float], int], object]


def counted(layers: int, slots: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Counts as a framework has them: uint32 [layers, slots]."""
    return np.arange(layers * slots, dtype=np.uint32).reshape(layers, slots)


def every_expert(log: Log, layers: int, slots: int) -> Step:
    """A step that logs each expert's count under a name of its own; the names are made once."""
    counts = counted(layers, slots)
    names = [f"experts/layer_{layer}/expert_{slot}" for layer in range(layers) for slot in range(slots)]
    return lambda step: log(dict(zip(names, counts.ravel().tolist(), strict=True)), step) and None


def summary(log: Log, layers: int, slots: int) -> Step:
    """A step that logs the largest and the mean count of each layer."""
    counts = counted(layers, slots)
    names = [f"experts/layer_{layer}/{what}" for what in ("max", "mean") for layer in range(layers)]

    def step(number: int) -> None:
        values = [*counts.max(axis=1).tolist(), *counts.mean(axis=1).tolist()]
        log(dict(zip(names, values, strict=True)), number)

    return step


def tensorboard_tensors(folder: Path, layers: int, slots: int) -> Step:
    """add_tensor of the counts and of the biases; packed here, written by a thread."""
    import torch
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    counts = torch.arange(layers * slots, dtype=torch.int32).reshape(layers, slots)
    bias = torch.linspace(-1, 1, layers * slots).reshape(layers, slots)

    def step(number: int) -> None:
        writer.add_tensor("experts/counts", counts, number)
        writer.add_tensor("experts/bias", bias, number)

    return step


def tensorboard_log(folder: Path) -> Log:
    """add_scalar of each value."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log


def mlflow_log(folder: Path) -> Log:
    """log_metrics into SQLite; it writes before it returns."""
    import mlflow

    folder.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = mlflow.create_experiment(folder.name, artifact_location=folder.as_uri())
    run_id = mlflow.MlflowClient().create_run(experiment).info.run_id

    def log(values: dict[str, float], step: int) -> None:
        items = list(values.items())
        for begin in range(0, len(items), BATCH):
            mlflow.log_metrics(dict(items[begin : begin + BATCH]), step=step, run_id=run_id)

    return log


def wandb_log(folder: Path) -> Log:
    """Run.log offline; a process beside it writes."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    quiet = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True)
    run = wandb.init(project="bench", mode="offline", dir=str(folder), settings=quiet, reinit="create_new")
    return lambda values, step: run.log(values, step=step)


def trackio_log(folder: Path) -> Log:
    """trackio.log locally; a thread writes. One run at a time: it has one a thread."""
    import trackio

    project = folder.name.replace("x", "-by-")
    run = trackio.init(project=project, name="bench", embed=False, auto_log_gpu=False, auto_log_cpu=False)
    return lambda values, step: run.log(values, step=step)


LOGS = {"tensorboard": tensorboard_log, "mlflow": mlflow_log, "wandb": wandb_log, "trackio": trackio_log}
TITLES = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "W&B offline", "trackio": "trackio"}
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb", "trackio": "trackio"}
CALLS = {"tensorboard": "add_scalar", "mlflow": "log_metrics", "wandb": "log", "trackio": "log"}
WAYS = {"summary": summary, "every": every_expert}
PEERS = {
    "tensorboard-summary": "2 scalars a layer",
    "tensorboard-tensors": "add_tensor of counts and of biases",
    "mlflow-summary": "2 metrics a layer",
    "mlflow-every": "a metric an expert, counts alone",
    "wandb-summary": "2 values a layer",
    "wandb-every": "a value an expert, counts alone",
    "trackio-summary": "2 values a layer",
    "trackio-every": "a value an expert, counts alone",
}
"""What each of them is given."""


def python() -> str:
    """The interpreter that has the loggers; our own where their environment was not made."""
    return str(LOGGERS) if LOGGERS.exists() else sys.executable


def versions() -> dict[str, str]:
    """Which of the loggers are there, and in which version."""
    found = {}
    for package, name in PACKAGES.items():
        try:
            found[package] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def installed() -> dict[str, str]:
    """The same of `python()`."""
    ask = "import json; from benchmarks.probe_peers import versions; print(json.dumps(versions()))"
    answer = subprocess.run([python(), "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = json.loads(answer)
    return found


def title(peer: str) -> str:
    """Its name, version, call and way, for a figure."""
    package, _, way = peer.partition("-")
    call = "add_tensor" if way == "tensors" else CALLS[package]
    words = {"summary": "largest and mean load of each layer", "every": "every expert", "tensors": "every expert"}
    return f"{TITLES[package]} {installed()[package]} {call}, {words[way]}"


def maker(peer: str) -> Callable[[Path, int, int], Step]:
    """How its step is made."""
    package, _, way = peer.partition("-")
    if way == "tensors":
        return tensorboard_tensors
    return lambda folder, layers, slots: WAYS[way](LOGS[package](folder), layers, slots)


@contextmanager
def peers(folder: Path) -> Iterator[dict[str, Caller]]:
    """A caller for each peer that is installed, all of them ready."""
    with ExitStack() as stack:
        found = {}
        for peer in (one for one in PEERS if one.partition("-")[0] in installed()):
            home = folder / peer
            home.mkdir()
            env = {**os.environ, **OFFLINE, **dict.fromkeys(HOMES, str(home))}
            found[peer] = stack.enter_context(
                caller("benchmarks.probe_peers", peer, str(home), python=python(), env=env)
            )
        for one in found.values():
            one.ready()
        yield found


if __name__ == "__main__":
    serve(maker(sys.argv[1]), Path(sys.argv[2]))
