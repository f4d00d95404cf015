"""verl: `global_step_100/{actor,critic,data.pt}` beside `latest_checkpointed_iteration.txt`.

Under FSDP `actor/` holds model, optim and extra_state, a file each a rank, with the world's size in the name; under
Megatron `actor/dist_ckpt/`. The tracker is written last, also by an asynchronous save. `max_actor_ckpt_to_keep` deletes
`actor/` and leaves the step's directory behind with `data.pt` alone. `trainer.resume_mode=resume_path` with
`trainer.resume_from_path` loads exactly that directory; the default, auto, follows the tracker. Source:
verl/trainer/ppo/ray_trainer.py (_save_checkpoint, _load_checkpoint), verl/utils/checkpoint/fsdp_checkpoint_manager.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from jobs.layouts import distcp, megatron
from jobs.layouts.base import Layout, first, missing

_SHARD = re.compile(r"model_world_size_(\d{1,6})_rank_\d+\.pt", re.ASCII)


class Verl(Layout):
    """verl's steps: the number is that of completed steps."""

    name = "verl"
    pattern = re.compile(r"global_step_(\d+)", re.ASCII)

    def unfinished(self, directory: Path, number: int) -> str:
        why = megatron.behind(directory, number)
        if why:
            return why
        if missing(directory, ["data.pt"]):
            return "its data.pt, the position in the data, is not there"
        if not (directory / "actor").is_dir():
            return "its actor is not there: verl keeps only the newest"
        roles = [role for role in ("actor", "critic") if (directory / role).is_dir()]
        found = ((role, _role(directory / role)) for role in roles)
        return next((f"its {role} is not whole: {lack}" for role, lack in found if lack), "")

    def resume(self, directory: Path) -> tuple[str, ...]:
        return "trainer.resume_mode=resume_path", f"trainer.resume_from_path={directory}"


def _role(directory: Path) -> str:
    """What one worker group's directory lacks, as a clause."""
    if (directory / "dist_ckpt").is_dir():
        return distcp.unfinished(directory / "dist_ckpt")
    worlds = {int(match[1]) for path in directory.iterdir() if (match := _SHARD.fullmatch(path.name))}
    if len(worlds) != 1:
        return "no rank's model is there" if not worlds else "it mixes two sizes of the world"
    (world,) = worlds
    kinds = ("model", "optim", "extra_state")
    names = [f"{kind}_world_size_{world}_rank_{rank}.pt" for kind in kinds for rank in range(world)]
    lacking = missing(directory, names)
    return f"{first(lacking)} is not there" if lacking else ""
