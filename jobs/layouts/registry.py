"""The checkpoint adapters by the name that a job's spec gives. No heavy import: jobs.spec checks names against it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from jobs.layouts.base import Layout
from jobs.layouts.huggingface import HuggingFace
from jobs.layouts.megatron import Megatron, Slime
from jobs.layouts.roll import Roll
from jobs.layouts.torchtitan import Torchtitan
from jobs.layouts.verl import Verl
from jobs.manifest import ContractError

LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout for layout in (HuggingFace(), Megatron(), Roll(), Slime(), Torchtitan(), Verl())
}


def find(name: str) -> Layout:
    """The adapter of a name; ContractError names those that exist."""
    if name not in LAYOUTS:
        near = difflib.get_close_matches(name, LAYOUTS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ContractError(f"{name!r} is no checkpoint layout{hint}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
