"""ROLL: `checkpoint-100/` in the uploader's directory, filled by many workers and, last, by the pipeline.

ROLL marks no finished checkpoint. With `async_upload: false`, which the preset sets, each worker's copy ends before the
pipeline writes `pipeline/worker_state_pipeline.json`; with the default, true, the copies race and nothing on the disk
tells. So a directory counts once that file is whole, and discovery waits until nothing in it changes. Steps are
numbered from 0: `checkpoint-9` holds ten. ROLL's start scripts take a YAML alone; the preset's YAML has
`resume_from_checkpoint: ${oc.env:TRIMTAB_RESUME_FROM}`, which is exact and, when empty, no resume. Its own latest is
asked only for `true`. Source: roll/pipeline/base_pipeline.py (do_checkpoint), roll/utils/upload_utils.py,
roll/utils/worker_state.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from jobs.layouts.base import Layout, missing

_STATE = "worker_state_pipeline.json"


class Roll(Layout):
    """ROLL's steps."""

    name = "roll"
    pattern = re.compile(r"checkpoint-(\d+)", re.ASCII)
    counts_from = 0
    nested = False

    def unfinished(self, directory: Path, number: int) -> str:
        home = directory / "pipeline"
        if missing(home, [_STATE]):
            return f"its pipeline/{_STATE}, which is copied last, is not there"
        try:
            step = json.loads((home / _STATE).read_bytes())["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return f"its pipeline/{_STATE} is not whole"
        if step != number:
            return f"its pipeline/{_STATE} is that of step {step}"
        others = [path for path in directory.iterdir() if path.name != "pipeline"]
        return "" if others else "no worker's part is there"

    def resume(self, directory: Path) -> tuple[str, ...]:
        del directory  # by the environment: see above
        return ()
