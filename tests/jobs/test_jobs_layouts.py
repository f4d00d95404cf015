"""Checkpoint adapters: what counts as finished in each framework's layout, traps included, and how one is resumed.

DCP directories are written by PyTorch itself; the other files stand in for tensors, which no adapter reads.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from jobs.layouts import distcp, listing
from jobs.layouts.base import SeenCheckpoint
from jobs.layouts.registry import LAYOUTS, find
from jobs.manifest import ContractError

TRACKER = "latest_checkpointed_iteration.txt"


def put(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def steps(name: str, attempt: Path) -> dict[int, str]:
    """The steps that an adapter sees, with what it says against each."""
    return {one.step: one.unfinished for one in find(name).look(attempt)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as PyTorch's distributed checkpoint leaves it."""
    made = tmp_path_factory.mktemp("dcp") / "saved"
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"weight": torch.arange(8.0), "step": 5}, checkpoint_id=made, no_dist=True)
    return made


def megatron_dist(saved: Path, directory: Path) -> Path:
    """An `iter_` directory of format torch_dist."""
    shutil.copytree(saved, directory)
    put(directory / "common.pt")
    put(directory / "metadata.json", json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    return directory


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    put(tmp_path / "notes" / "iter_x" / "readme.txt")
    for name, layout in LAYOUTS.items():
        assert layout.name == name
        assert layout.look(tmp_path) == [] == layout.look(tmp_path / "not there")
    with pytest.raises(ContractError, match="did you mean megatron"):
        find("megatorn")


def test_dcp_is_finished_by_its_metadata_and_by_every_file_that_it_names(saved: Path, tmp_path: Path) -> None:
    assert distcp.named_files(saved / ".metadata") == ["__0_0.distcp"]
    half = tmp_path / "checkpoint" / "step-5"
    shutil.copytree(saved, half)
    shutil.copytree(saved, half.with_name("step-0"))
    shutil.copytree(saved, half.with_name("step-10"))
    (half / ".metadata").rename(half / ".metadata.tmp")
    found = steps("torchtitan", tmp_path)
    assert found == {5: "it has no .metadata, which is written last", 10: ""}, "step-0 is a seed, not a step"
    (half / ".metadata.tmp").rename(half / ".metadata")
    (half / "__0_0.distcp").unlink()
    assert "names __0_0.distcp, which is not there" in steps("torchtitan", tmp_path)[5]
    whole = (saved / ".metadata").read_bytes()
    (half / ".metadata").write_bytes(whole[: len(whole) // 2])
    assert "no whole pickle" in steps("torchtitan", tmp_path)[5]
    (half / ".metadata").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "ran") + b"'\ntR.")
    assert "names no file" in steps("torchtitan", tmp_path)[5]
    assert not (tmp_path / "ran").exists(), "a pickle on a trainer's disk is never loaded"


def test_megatron_trusts_the_tracker_backwards_only(saved: Path, tmp_path: Path) -> None:
    for number in (100, 200, 300):
        megatron_dist(saved, tmp_path / f"iter_{number:07d}")
    assert set(steps("megatron", tmp_path).values()) == {"no tracker file names it yet"}
    put(tmp_path / TRACKER, "")  # opened and not yet written
    assert not any(why == "" for why in steps("megatron", tmp_path).values())
    put(tmp_path / TRACKER, "200")
    found = steps("megatron", tmp_path)
    assert (found[100], found[200]) == ("", "")
    assert found[300] == "the tracker file names 200, which is before it"
    put(tmp_path / TRACKER, "900")  # ahead of all that is left
    (tmp_path / "iter_0000200" / "__0_0.distcp").unlink()
    (tmp_path / "iter_0000300" / "common.pt").unlink()
    found = steps("megatron", tmp_path)
    assert found[100] == "" and "__0_0.distcp" in found[200] and "common.pt" in found[300]
    put(tmp_path / TRACKER, "release")
    assert found != steps("megatron", tmp_path)


def test_megatron_s_older_format_has_a_file_a_model_parallel_rank(tmp_path: Path) -> None:
    put(tmp_path / TRACKER, "7")
    for rank in ("00_000", "00_001", "01_000", "01_001"):
        put(tmp_path / "iter_0000007" / f"mp_rank_{rank}" / "model_optim_rng.pt")
    assert steps("megatron", tmp_path) == {7: ""}
    shutil.rmtree(tmp_path / "iter_0000007" / "mp_rank_01_000")
    assert steps("megatron", tmp_path) == {7: "model-parallel rank 1, 0 is not there"}
    put(tmp_path / "iter_0000007" / "mp_rank_01_000" / "model_optim_rng.pt", "")
    assert "mp_rank_01_000/model_optim_rng.pt is not there" in steps("megatron", tmp_path)[7]


def test_slime_needs_the_position_in_the_data_and_the_critic(saved: Path, tmp_path: Path) -> None:
    megatron_dist(saved, tmp_path / "iter_0000009")
    put(tmp_path / TRACKER, "9")
    assert "the data's position" in steps("slime", tmp_path)[10]
    data = put(tmp_path / "rollout" / "global_dataset_state_dict_9.pt")
    (found,) = find("slime").look(tmp_path)
    assert (found.step, found.unfinished) == (10, "")
    assert data in {file.path for file in found.files}, "what lies beside the directory is a part of it"
    put(tmp_path / "critic" / "iter_0000009" / "mp_rank_00" / "other.pt")
    assert "its critic is not finished" in steps("slime", tmp_path)[10]
    shutil.rmtree(tmp_path / "critic")
    megatron_dist(saved, tmp_path / "critic" / "iter_0000009")
    assert steps("slime", tmp_path) == {10: ""}
    words = find("slime").resume(tmp_path / "iter_0000009")
    assert words == ("--load", str(tmp_path), "--ckpt-step", "9", "--critic-load", str(tmp_path / "critic"))


def test_verl_s_actor_has_every_rank_of_one_world(saved: Path, tmp_path: Path) -> None:
    step = tmp_path / "global_step_20"
    put(step / "data.pt")
    for kind in ("model", "optim", "extra_state"):
        for rank in range(2):
            put(step / "actor" / f"{kind}_world_size_2_rank_{rank}.pt")
    put(tmp_path / TRACKER, "10")
    assert "which is before it" in steps("verl", tmp_path)[20]
    put(tmp_path / TRACKER, "20")
    assert steps("verl", tmp_path) == {20: ""}
    (step / "actor" / "optim_world_size_2_rank_1.pt").unlink()
    assert "optim_world_size_2_rank_1.pt is not there" in steps("verl", tmp_path)[20]
    shutil.rmtree(step / "actor")
    assert "keeps only the newest" in steps("verl", tmp_path)[20]
    shutil.copytree(saved, step / "actor" / "dist_ckpt")
    assert steps("verl", tmp_path) == {20: ""}
    (step / "data.pt").unlink()
    assert "position in the data" in steps("verl", tmp_path)[20]


def huggingface(directory: Path) -> Path:
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        put(directory / name)
    put(directory / "trainer_state.json", json.dumps({"global_step": int(directory.name.rpartition("-")[2])}))
    return directory


def test_a_trainer_s_checkpoint_is_whole_or_says_what_it_lacks(tmp_path: Path) -> None:
    step = huggingface(tmp_path / "checkpoint-50")
    assert steps("huggingface", tmp_path) == {50: ""}
    put(step / "checkpoint-is-incomplete.txt")
    assert "is being written" in steps("huggingface", tmp_path)[50]
    (step / "checkpoint-is-incomplete.txt").unlink()
    put(step / "rng_state_0.pth"), put(step / "rng_state_2.pth")
    assert steps("huggingface", tmp_path)[50] == "rng_state_1.pth is not there"
    put(step / "rng_state_1.pth")
    put(step / "model.safetensors.index.json", json.dumps({"weight_map": {"a": "model.safetensors", "b": "m2"}}))
    assert "names m2, which is not there" in steps("huggingface", tmp_path)[50]
    put(step / "m2")
    (step / "optimizer.pt").unlink()
    assert "weights alone" in steps("huggingface", tmp_path)[50]
    put(step / "optimizer.pt")
    put(step / "trainer_state.json", '{"global_step": 4')
    assert "trainer_state.json" in steps("huggingface", tmp_path)[50]
    put(step / "trainer_state.json", '{"global_step": 40}')
    assert steps("huggingface", tmp_path)[50] == "its trainer_state.json is that of step 40"


def lacks(step: Path, ranks: int) -> str:
    """What the layout of a job of so many ranks says of the only step."""
    (found,) = find("huggingface").of_world(ranks).look(step.parent)
    return found.unfinished


def test_every_rank_of_the_job_has_its_random_state_and_its_shards(saved: Path, tmp_path: Path) -> None:
    step = huggingface(tmp_path / "checkpoint-10")
    assert lacks(step, 4) == "", "a lone rng_state.pth is that of a world of one"
    for rank in range(3):
        put(step / f"rng_state_{rank}.pth")
    assert (lacks(step, 3), lacks(step, 4)) == ("", "rng_state_3.pth is not there")
    put(step / "rng_state_3.pth")
    for rank in range(3):
        put(step / "global_step10" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    assert "data-parallel rank 3 are not there" in lacks(step, 4)
    last = put(step / "global_step10" / "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt", "")
    assert "rank_3_mp_rank_00_optim_states.pt is empty" in lacks(step, 4)
    put(last)
    assert lacks(step, 4) == ""
    put(step / "optimizer.pt", "")
    assert lacks(step, 4) == "its optimizer.pt is empty"
    put(step / "optimizer.pt")
    shutil.copytree(saved, step / "optimizer_0")
    assert lacks(step, 4) == ""
    (step / "optimizer_0" / ".metadata").unlink()
    assert "its optimizer_0 is not whole: it has no .metadata" in lacks(step, 4)


def test_roll_is_finished_by_the_pipeline_s_own_state(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-9" / "actor_train" / "iter_0000001" / "model.pt")
    assert "copied last" in steps("roll", tmp_path)[10]
    state = put(tmp_path / "checkpoint-9" / "pipeline" / "worker_state_pipeline.json", '{"step": 9, "log_hist')
    assert "not whole" in steps("roll", tmp_path)[10]
    put(state, json.dumps({"step": 9, "log_history": []}))
    assert steps("roll", tmp_path) == {10: ""}
    shutil.rmtree(tmp_path / "checkpoint-9" / "actor_train")
    assert "no worker's part" in steps("roll", tmp_path)[10]


@pytest.mark.parametrize(
    ("name", "directory", "words"),
    [
        ("megatron", "iter_0000100", ("--load", "/runs/a", "--ckpt-step", "100")),
        (
            "torchtitan",
            "step-100",
            ("--checkpoint.initial_load_path", "/runs/a/step-100", "--checkpoint.no_initial_load_model_only"),
        ),
        (
            "verl",
            "global_step_100",
            ("trainer.resume_mode=resume_path", "trainer.resume_from_path=/runs/a/global_step_100"),
        ),
        ("huggingface", "checkpoint-100", ("--resume_from_checkpoint", "/runs/a/checkpoint-100")),
        ("roll", "checkpoint-99", ()),
    ],
)
def test_each_resumes_exactly_that_directory(name: str, directory: str, words: tuple[str, ...]) -> None:
    assert find(name).resume(Path("/runs/a") / directory) == words


def only(attempt: Path) -> SeenCheckpoint:
    (found,) = find("huggingface").look(attempt)
    return found


def test_a_list_of_files_has_one_hash_wherever_they_lie_and_finds_every_change(tmp_path: Path) -> None:
    step = huggingface(tmp_path / "run" / "attempt-0001" / "checkpoint-50")
    made = listing.make("huggingface", only(step.parent))
    path = listing.place(tmp_path / "run", step)
    listing.write(path, made)
    assert path.parent == tmp_path / "run" / "listings" and listing.read(path) == made
    shutil.copytree(step, tmp_path / "moved" / "checkpoint-50")
    assert listing.make("huggingface", only(tmp_path / "moved")).hash() == made.hash()
    assert listing.verify(made, tmp_path / "moved" / "checkpoint-50").ok
    put(step / "optimizer.pt", "y")
    assert "hash that was listed" in listing.verify(made, step).reason
    put(step / "optimizer.pt", "longer")
    assert "6 bytes, 1 were listed" in listing.verify(made, step).reason
    (step / "optimizer.pt").unlink()
    assert "is missing" in listing.verify(made, step).reason
    path.write_text(path.read_text().replace('"step": 50', '"step": 60'))
    with pytest.raises(ContractError, match="not what was written"):
        listing.read(path)


def test_what_is_written_to_while_it_is_read_is_not_listed(tmp_path: Path) -> None:
    step = huggingface(tmp_path / "checkpoint-50")
    found = only(tmp_path)
    assert found.begun_at_s <= found.written_at_s and found.bytes > 4
    os.utime(step / "model.safetensors", (1.0, 1.0))
    assert only(tmp_path).begun_at_s == 1.0
    with pytest.raises(ContractError, match=r"model\.safetensors was written to"):
        listing.make("huggingface", found)
