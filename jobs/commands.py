"""The words of a command that is not ours, and its environment, with their places filled in.

A trainer that knows nothing of TRIMTAB_ variables is told in its own flags where to save, how far to go and from which
directory to resume. `{resume}` as a whole word becomes the words of the layout, none for a fresh start; the other
places may stand within a word. Nothing is filled in for a job without a layout: its braces are its own. No shell is
involved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

RESUME = "{resume}"
PLACES: Mapping[str, str] = {
    "checkpoint_dir": "the directory of this attempt's checkpoints, which is its own",
    "run_dir": "the directory of the run, which all its attempts share",
    "resume_from": "the exact directory to resume from; empty for a fresh start",
    "steps": "train.steps",
    "checkpoint_every": "train.checkpointEvery",
    "seed": "train.seed",
    "nodes": "resources.nodes",
    "gpus_per_node": "resources.gpusPerNode",
    "ranks_per_node": "resources.ranksPerNode",
    "attempt": "the number of the attempt",
}
"""What may stand in braces, with what it becomes."""
_PLACE = re.compile(r"\{(" + "|".join(PLACES) + r")\}")
OURS = re.compile(r"TRIMTAB_|PET_|KUBEFLOW_TRAINER_|JOB_COMPLETION_INDEX$|RAY_ADDRESS$|[A-Z]+_VISIBLE_DEVICES$")
"""Names of variables that the control plane or the platform sets."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def filled(text: str, values: Mapping[str, str]) -> str:
    """A text with its places filled in; what is no place of ours stays."""
    return _PLACE.sub(lambda match: values[match[1]], text)


def words(command: Sequence[str], values: Mapping[str, str], resume: Sequence[str]) -> tuple[str, ...]:
    """A command with its places filled in; `resume` stands for the word `{resume}`."""
    found: list[str] = []
    for word in command:
        found += resume if word == RESUME else [filled(word, values)]
    return tuple(found)
