"""torchtitan: `checkpoint/step-100/`, a DCP directory; finished once `.metadata` is there.

Its own choice is the newest `step-N` with a `.metadata`; the preset never lets it choose: each attempt has a folder of
its own, and `initial_load_path`, which counts while that folder is empty, names the directory.
`initial_load_model_only` is true by default and would leave the optimizer, the schedule and the data's position behind;
the words say the contrary. `last_save_model_only` is true by default too: what is saved at the last step holds weights
alone. Source: torchtitan/components/checkpointer/{base,dcp}.py of 0.3.0.
"""

from __future__ import annotations

import re
from pathlib import Path

from jobs.layouts import distcp
from jobs.layouts.base import Layout


class Torchtitan(Layout):
    """torchtitan's steps; `step-0` is a seed checkpoint, weights only, and no step."""

    name = "torchtitan"
    pattern = re.compile(r"step-(0|[1-9]\d*)", re.ASCII)

    def unfinished(self, directory: Path, number: int) -> str:
        del number
        return distcp.unfinished(directory)

    def resume(self, directory: Path) -> tuple[str, ...]:
        return "--checkpoint.initial_load_path", str(directory), "--checkpoint.no_initial_load_model_only"
