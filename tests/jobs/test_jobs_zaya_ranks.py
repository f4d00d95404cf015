"""Sharded training and sharded checkpoints, in real processes: equal to replicated training, resumed to the bit,
and read back on other numbers of ranks."""

from __future__ import annotations

import pytest

from jobs import contract
from tests.jobs.zaya_ranks import Ranks

TRAIN = {"steps": 4, "checkpointEvery": 1, "sequences": 2, "length": 16, "seed": 5, "warmup": 2, "optimizer": "muon"}
SHARDED = {**TRAIN, "sharding": "fsdp2", "skipStep": {"window": 4, "sigmas": 99.0}}
# Weights stay where they are, so that what remains is how exactly state and gradients come back: AdamW would blow the
# last bit of a gradient that is nearly zero up to a whole step.
STILL = {**SHARDED, "learningRate": 1e-12}
WHOLE, SPREAD = 1, 2  # attempts: replicated with one file, replicated with each rank writing a part
PARTED, AGAIN = 3, 4  # sharded on two ranks, resumed on two
TWO, ONE, FOUR = 5, 6, 7  # standing still: resumed on two, resumed on one, and that one's on four


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    found = Ranks(tmp_path_factory.mktemp("ranks"))
    guard = {"skipStep": SHARDED["skipStep"]}
    assert found.attempt(WHOLE, 2, {**TRAIN, **guard}) == [0, 0]
    assert found.attempt(SPREAD, 2, {**TRAIN, **guard, "checkpoints": "dcp"}) == [0, 0]
    assert found.attempt(PARTED, 2, SHARDED) == [0, 0]
    assert found.attempt(AGAIN, 2, SHARDED, found.saved(PARTED, 2)) == [0, 0]
    assert found.attempt(TWO, 2, STILL, found.saved(PARTED, 2)) == [0, 0]
    assert found.attempt(ONE, 1, {**STILL, "steps": 3, "sequences": 4}, found.saved(PARTED, 2)) == [0]
    assert found.attempt(FOUR, 4, {**STILL, "sequences": 1}, found.saved(ONE, 3)) == [0] * 4
    return found


@pytest.fixture(scope="module")
def differences(ranks: Ranks) -> dict[str, float]:
    saved = ranks.saved
    return ranks.differences(
        {
            "sharded and whole": (saved(PARTED, 4), saved(WHOLE, 4)),
            "spread and whole": (saved(SPREAD, 4), saved(WHOLE, 4)),
            "resumed": (saved(AGAIN, 4), saved(PARTED, 4)),
            "two to one": (saved(ONE, 3), saved(TWO, 3)),
            "one to four": (saved(FOUR, 4), saved(TWO, 4)),
            "a step": (saved(PARTED, 3), saved(PARTED, 2)),
        }
    )


def test_each_rank_writes_its_part_and_the_manifest_names_them_all(ranks: Ranks) -> None:
    for no, shards in ((SPREAD, 1), (PARTED, 2)):
        where = ranks.saved(no, 2)
        manifest = contract.read_manifest(where)
        assert [file.name for file in manifest.files] == [".metadata", "__0_0.distcp", "__1_0.distcp"]
        assert contract.verify(where).ok
        assert manifest.parallel == {"data": 2, "shards": shards}
    assert [file.name for file in contract.read_manifest(ranks.saved(WHOLE, 2)).files] == ["state.pt"]


def test_sharded_training_is_replicated_training(differences: dict[str, float]) -> None:
    assert differences["sharded and whole"] < 1e-5
    assert differences["a step"] > 1e-3, "the comparison sees a step"


def test_files_of_all_ranks_hold_the_state_of_the_one_file(differences: dict[str, float]) -> None:
    assert differences["spread and whole"] == 0


def test_a_sharded_training_resumes_to_the_bit(ranks: Ranks, differences: dict[str, float]) -> None:
    assert differences["resumed"] == 0
    assert contract.read_manifest(ranks.saved(AGAIN, 4)).parent == str(ranks.saved(PARTED, 2))


def test_two_ranks_checkpoint_goes_on_on_one_and_on_four(differences: dict[str, float]) -> None:
    assert differences["two to one"] < 1e-6
    assert differences["one to four"] < 1e-6


def test_what_is_no_sharded_state_is_refused(ranks: Ranks) -> None:
    where = ranks.saved(PARTED, 1)
    contents = where / ".metadata"
    contents.write_bytes(b"not a table of contents")
    manifest = contract.read_manifest(where)
    files = tuple(
        contract.ManifestFile(one.name, (where / one.name).stat().st_size, contract.sha256_of(where / one.name))
        for one in manifest.files
    )
    contract.write_manifest(where, contract.Manifest(**{**vars(manifest), "files": files}))
    assert ranks.attempt(9, 1, SHARDED, where) == [contract.Exit.CONFIG]
    assert "cannot be loaded" in (ranks.directory / "output-9.0").read_text()
