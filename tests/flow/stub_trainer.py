"""A trainer without a model, at level 2 of the contract: heartbeats, a ring, checkpoints, an exit record. For tests.

Arguments: how many steps, and how many seconds a step takes. A rank a node, as the local backend starts it.
"""

from __future__ import annotations

import os
import sys
import time
from array import array

from agents.probe.capture import Probe
from jobs.contract import (
    Environment,
    ExitRecord,
    HeartbeatWriter,
    Manifest,
    ManifestFile,
    StopFlag,
    read_manifest,
    sha256_of,
    step_directory,
    write_exit_record,
    write_manifest,
)

LAYERS, SLOTS, EXPERTS, TOKENS = 2, 5, 4, 40
SAVE_EVERY = 50


def save(environment: Environment, step: int, world: int) -> None:
    """A whole checkpoint of a completed step."""
    directory, state_at_s = step_directory(environment.checkpoint_dir, step), time.time()
    directory.mkdir(parents=True, exist_ok=True)
    state = directory / "state.bin"
    state.write_text(str(step))
    manifest = Manifest(
        run_id=environment.run_id,
        attempt_no=environment.attempt_no,
        epoch=environment.epoch,
        stage=environment.stage,
        step=step,
        world_size=world,
        files=(ManifestFile(state.name, state.stat().st_size, sha256_of(state)),),
        data_position=step * TOKENS,
        bias_checksum="none",
        state_at_s=state_at_s,
        written_at_s=time.time(),
    )
    write_manifest(directory, manifest)


def main(steps: int, step_seconds: float) -> int:
    """Trains to the last step, or until it is told to stop."""
    flag, environment = StopFlag(), Environment.read()
    rank, world = int(os.environ["PET_NODE_RANK"]), int(os.environ["PET_NNODES"])
    beat = HeartbeatWriter(environment, rank, world)
    env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world)}
    probe = Probe(layers=LAYERS, slots=SLOTS, experts=EXPERTS, top_k=1, env=env)
    counts = array("I", [TOKENS // EXPERTS] * EXPERTS + [0]) * LAYERS
    bias = array("f", [0.0]) * (LAYERS * SLOTS)
    step = read_manifest(environment.resume_from).step if environment.resume_from else 0
    beat.phase("train")
    while step < steps and not flag.stop:
        time.sleep(step_seconds)
        step += 1
        probe.write(step, counts, bias, routed=TOKENS, loss=3.0, grad_norm=1.0, step_seconds=step_seconds)
        beat.step(step)
        if rank == 0 and step % SAVE_EVERY == 0:
            beat.phase("checkpoint")
            save(environment, step, world)
            beat.phase("train")
    probe.close()
    if environment.heartbeat_dir is not None:
        write_exit_record(environment.heartbeat_dir, ExitRecord(rank, 0, "train", step, "", "", "", time.time()))
    beat.phase("exit")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
