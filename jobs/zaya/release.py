"""Releases one checkpoint in the form that transformers loads, and loads it there before it says so.

`python -m jobs.zaya.release`: one process, level 2 of the contract, one step. The files are written into the attempt's
own directory, a fresh process that knows only transformers loads them and answers (jobs/zaya/releasing/loading.py), and
only when its logits and its greedy tokens are ours does the run's link `release` lead there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.contract import (
    ContractError,
    Environment,
    Exit,
    HeartbeatWriter,
    Result,
    StopFlag,
    checkpoint_hash,
    sha256_of,
    write_json,
    write_result,
)
from jobs.zaya.attempt import TooLateError, carry_out_alone
from jobs.zaya.checkpoints.state import config_of, model_of
from jobs.zaya.evaluation_config import ReleaseConfig, read_config
from jobs.zaya.model.generate import generate
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.releasing.card import card
from jobs.zaya.releasing.files import CARD, write_files
from jobs.zaya.tokens import END, VOCABULARY, prompt

LOADING = Path(__file__).parent / "releasing" / "loading.py"
SECONDS = 600.0
NAME, EPOCH = "release", "release-epoch.json"
"""an attempt's own files, to which RUN_DIR's link of the same name leads, and beside them the epoch that wrote them"""
_SLICE_S = 1.0
_WORDS = ("reverse abcd", "sort hgfedcba", "add 7+8+9", "What is a context manager?")


def prompts(count: int) -> list[list[int]]:
    """What both models are asked: questions as a user would put them, then runs over all the bytes."""
    asked = [prompt(words) for words in _WORDS]
    runs = [[(start * 37 + place * 11) % VOCABULARY for place in range(48)] for start in range(count)]
    return (asked + runs)[:count]


def _nothing() -> None:
    """Nobody waits."""


def loaded(directory: Path, asked: Mapping[str, Any], waiting: Callable[[], None] = _nothing) -> dict[str, Any]:
    """What transformers makes of a release in a fresh process; ContractError with its words when it cannot.

    `waiting` is called again and again meanwhile; what it raises ends the process.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRIMTAB_", "PYTHON"))}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-I", str(LOADING), str(directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            out, err = _answer(process, json.dumps(asked), waiting)
        finally:
            process.kill()
    if process.returncode:
        raise ContractError(f"transformers cannot load the release: {err.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def _answer(process: subprocess.Popen[str], asked: str, waiting: Callable[[], None]) -> tuple[str, str]:
    """What a process says in the end; ContractError when it has not ended after SECONDS."""
    given: str | None = asked
    deadline = time.monotonic() + SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            return process.communicate(given, timeout=min(left, _SLICE_S))
        except subprocess.TimeoutExpired:
            given = None  # communicate keeps what it has not written yet
            waiting()
    raise ContractError(f"transformers did not load the release within {SECONDS:.0f} s")


TEXTS = ("\x05reverse abcd\x06", " blanks  and\n\ttabs. don't", "ăĀ ünïcode 日本 .")


@torch.no_grad()
def compared(
    model: ZayaForCausalLM, directory: Path, config: ReleaseConfig, waiting: Callable[[], None] = _nothing
) -> dict[str, float]:
    """The largest difference of a logit, and the shares of greedy texts and of tokenized texts that are the same."""
    asked = prompts(config.prompts)
    found = loaded(directory, {"prompts": asked, "texts": TEXTS, "new_tokens": config.new_tokens}, waiting)
    ours = [model(torch.tensor([one]))[0] for one in asked]
    theirs = [torch.tensor(one) for one in found["logits"]]
    said = generate(model, asked, limit=config.new_tokens, temperature=0)
    same = [[*one.tokens, *[END] * one.ended] == told for one, told in zip(said, found["greedy"], strict=True)]
    read = [[list(text.encode()), text] == pair for text, pair in zip(TEXTS, found["texts"], strict=True)]
    return {
        "logit_difference": max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)),
        "greedy_equal": sum(same) / len(same),
        "tokens_equal": sum(read) / len(read),
    }


def lineage(env: Mapping[str, str] | None = None) -> Sequence[Mapping[str, Any]]:
    """The stages that led here, oldest first, from the file that TRIMTAB_LINEAGE_JSON names; none without it.

    ContractError for a file that cannot be read as one.
    """
    name = (os.environ if env is None else env).get("TRIMTAB_LINEAGE_JSON", "")
    if not name:
        return []
    try:
        found = json.loads(Path(name).read_bytes())
        stages = found["stages"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError(f"the lineage {name} cannot be read: {error}") from error
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ContractError(f"the lineage {name} does not hold its stages as a list of objects")
    return stages


def publish(place: Path, environment: Environment) -> None:
    """Makes RUN_DIR/release a link to an attempt's release in one rename: a reader sees the old one or the new one.

    TooLateError where the release of a later epoch stands there: this attempt was superseded.
    """
    link, epoch = environment.run_dir / NAME, environment.epoch
    write_json(place.with_name(EPOCH), {"epoch": epoch}, durable=True)
    with (environment.run_dir / f".{NAME}.lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a disk without locks: two attempts at the same moment may both look first
            fcntl.flock(lock, fcntl.LOCK_EX)
        standing = _epoch_of(link)
        if standing > epoch:
            raise TooLateError(f"{link} is of epoch {standing}: this attempt, of {epoch}, was superseded")
        fresh = link.with_name(f".{NAME}-{environment.attempt_no}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(place, link.parent))
        if link.is_dir() and not link.is_symlink():  # of a version that kept the files themselves here
            shutil.rmtree(link)
        fresh.replace(link)


def _epoch_of(link: Path) -> int:
    """The write epoch of the release that a link leads to; 0 where there is none, or none that says."""
    try:
        return int(json.loads(link.resolve().with_name(EPOCH).read_bytes())["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


class Release:
    """One attempt. `step` is 1 once the run's link leads to its release."""

    def __init__(self, environment: Environment, beat: HeartbeatWriter, flag: StopFlag) -> None:
        self.environment, self.beat, self.flag = environment, beat, flag
        self.step = 0

    def run(self) -> Exit:
        """Exports, has it loaded, compares, and puts it in its place; ContractError when it is not the same model."""
        self.beat.phase("load")
        config = read_config(ReleaseConfig)
        init = self.environment.init_from
        if init is None:
            raise ContractError("TRIMTAB_INIT_FROM names no checkpoint: there is nothing to release")
        manifest, model = model_of(init, self.environment.init_hash)
        found_hash = self.environment.init_hash or checkpoint_hash(init)
        self.beat.phase("checkpoint")
        place = self.environment.checkpoint_dir / NAME
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            shapes = config_of(manifest)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            write_files(place, model, shapes, card(shapes, parameters, found_hash, lineage()))
            self.beat.phase("eval")
            metrics = compared(model, place, config, self._look)
            _refuse(metrics, config.tolerance)
            self._look()
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        publish(place, self.environment)
        self.step = 1
        self.beat.step(1)
        self._tell(place, found_hash, metrics | {"loads": 1.0, "parameters": float(parameters)})
        return Exit.DONE

    def _look(self) -> None:
        """Says that work goes on, and ends the attempt if somebody asked for it."""
        self.beat.alive()
        if self.flag.stop:
            raise TooLateError("told to stop before the release was in its place")

    def _tell(self, place: Path, found_hash: str, metrics: Mapping[str, float]) -> None:
        details = {
            "path": str(place),
            "card": (place / CARD).read_text(),
            "files": {path.name: sha256_of(path) for path in sorted(place.iterdir())},
        }
        write_result(self.environment.checkpoint_dir, Result(metrics, found_hash, details))
        print(f"released {place}; largest difference of a logit {metrics['logit_difference']:.2g}", flush=True)


def _refuse(metrics: Mapping[str, float], tolerance: float) -> None:
    """Raises ContractError when what transformers loaded is another model than ours."""
    if not metrics["logit_difference"] <= tolerance:
        raise ContractError(
            f"transformers' logits differ from ours by {metrics['logit_difference']:.2g}, more than {tolerance:.2g}"
        )
    if metrics["greedy_equal"] < 1 or metrics["tokens_equal"] < 1:
        raise ContractError("transformers answers greedily with another text, or reads a text as other tokens")


def attempt(flag: StopFlag) -> int:
    """Runs the attempt; every end leaves an exit record."""
    return carry_out_alone(Release, "a release", flag)


def main() -> int:
    """Exit codes of the contract."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return attempt(StopFlag())


if __name__ == "__main__":
    sys.exit(main())
