"""A job that does each role of a lifecycle in the least of its ways, by the contract alone; started by the tests."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from jobs.contract import (
    Environment,
    Manifest,
    ManifestFile,
    Result,
    checkpoint_hash,
    sha256_of,
    step_directory,
    write_manifest,
    write_result,
)


def _save(environment: Environment, step: int, text: str) -> None:
    directory = step_directory(environment.checkpoint_dir, step)
    directory.mkdir(parents=True)
    (directory / "model.txt").write_text(text)
    file = ManifestFile("model.txt", len(text.encode()), sha256_of(directory / "model.txt"))
    write_manifest(
        directory,
        Manifest(
            run_id=environment.run_id,
            attempt_no=environment.attempt_no,
            epoch=environment.epoch,
            stage=environment.stage,
            step=step,
            world_size=1,
            files=(file,),
            data_position=step,
            bias_checksum="none",
            state_at_s=time.time(),
            written_at_s=time.time(),
        ),
    )


def main() -> int:
    environment, role = Environment.read(), os.environ["TRIMTAB_ROLE"]
    source = environment.init_from
    if source is not None and checkpoint_hash(source) != environment.init_hash:
        return 78
    before = (source / "model.txt").read_text() if source is not None else ""
    data = environment.prepared_dir / "data.txt" if environment.prepared_dir is not None else None
    if role == "prepare" and data is not None:
        data.write_text(f"data for {environment.stage} from [{before}]")
    elif role == "train":
        read = data.read_text() if data is not None and data.exists() else ""
        _save(
            environment,
            int(json.loads(os.environ["TRIMTAB_TRAIN_JSON"])["steps"]),
            f"{before}{environment.stage}({read})",
        )
    else:
        story = json.loads(Path(os.environ["TRIMTAB_LINEAGE_JSON"]).read_text())
        details = {"stages": [one["stage"] for one in story["stages"]], "model": before}
        write_result(environment.checkpoint_dir, Result({"length": len(before)}, environment.init_hash, details))
    return 0


if __name__ == "__main__":
    sys.exit(main())
