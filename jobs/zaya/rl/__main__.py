"""`python -m jobs.zaya.rl`: a reinforcement-learning stage of the reference model; see jobs/zaya/rl/job.py."""

from __future__ import annotations

import argparse
import os
import sys

import torch

from jobs.contract import StopFlag
from jobs.zaya.attempt import carry_out_alone


def main() -> int:
    """Exit codes of the contract."""
    flag = StopFlag()
    argparse.ArgumentParser(
        prog="jobs.zaya.rl", description="Trains the reference model on rewards; its words are in docs/rl.md."
    ).parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Read when Ray is imported. On Linux a cluster of one's own listens on the machine's address, unless told that
        # it is a single node, as on a laptop; then it listens on loopback.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from jobs.zaya.rl.job import Job

    return carry_out_alone(Job, "reinforcement learning", flag)


if __name__ == "__main__":
    sys.exit(main())
