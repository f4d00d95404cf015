"""`trimtab experts replay` of a file: a table of predictions, or a sentence that says why there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from controlplane.cli.experts_replay import replay_command
from controlplane.cli.output import EXIT, Exit
from controlplane.simulate.balance import Controller
from tests.simulate.routers import EXPERTS, run

APP = typer.Typer()
APP.command()(replay_command)


def file_of(folder: Path, controller: Controller, **more: Any) -> str:
    counts, bias = run(controller, [12.0, 30.0], steps=300)
    values = {
        "counts": counts.astype(np.uint32),
        "bias": bias.astype(np.float32),
        "experts": EXPERTS,
        "top_k": 1,
        **more,
    }
    np.savez(folder / "run.npz", **{name: value for name, value in values.items() if value is not None})
    return str(folder / "run.npz")


def ask(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(APP, list(words))
    code = done.exception.code if isinstance(done.exception, Exit) else done.exit_code
    return code, done.stdout, done.stderr


def test_the_most_even_controller_stands_first(tmp_path: Path) -> None:
    path = file_of(tmp_path, Controller("adamw", 0.005))
    code, out, err = ask(path, "--design", "1", "--best", "50", "-o", "json")
    rows = json.loads(out)
    assert code == 0, err
    values = [row["cv_floor"] for row in rows]
    assert values == sorted(values)
    labels = [row["label"] for row in rows]
    assert labels.index("adamw 0.005") < labels.index("none")
    assert "2 of 2 layers answer their biases" in err
    code, out, _ = ask(path, "--best", "3")
    assert (code, len(out.splitlines())) == (0, 4)
    assert out.startswith("CONTROLLER")


def test_only_the_last_unbroken_steps_count(tmp_path: Path) -> None:
    step = np.concatenate([np.arange(280), np.arange(300, 320)])
    path = file_of(tmp_path, Controller("sign", 0.005), step=step, attempt=np.ones(300, int))
    code, _, err = ask(path)
    assert code == EXIT.USAGE
    assert "19 steps are too few" in err


@pytest.mark.parametrize(
    ("more", "said"),
    [({"top_k": None}, "--top-k"), ({"counts": None}, "counts"), ({"experts": 99}, "does not fit")],
)
def test_a_file_that_is_no_record_is_refused_with_the_reason(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    code, out, err = ask(file_of(tmp_path, Controller("sign", 0.005), **more))
    assert (code, out) == (EXIT.USAGE, "")
    assert "cannot be replayed" in err and said in err


def test_where_nothing_can_be_told_nothing_is_predicted(tmp_path: Path) -> None:
    code, out, err = ask(file_of(tmp_path, Controller("none")))
    assert (code, out) == (EXIT.ERROR, "")
    assert "cannot be told of any layer" in err
