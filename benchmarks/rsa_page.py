"""docs/rsa.md, written from the figures of one run of the bench: the words are here, the numbers are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "rsa.md"

_METHOD = """\
# Markovian recursive self-aggregation

`jobs/zaya/rsa.py`: with (N, C, T, β, τ), N rollouts of at most β tokens are drawn and the last τ of each are kept; then
T times N prompts, each the question and C of the tails, are answered with at most β tokens. The score is the mean over
the last N. No prompt is longer than question + C·τ and the marks between them (ASK, C times TAIL, REPLY), and no
completion longer than β with its END: a property test holds every number and policy to this. T = 0 is plain sampling,
τ = β hands on whole candidates, C = 1 revises one.

## Equal generated tokens

Methods are compared on what they generate, prompts not counted. RSA runs first. Its first N rollouts are plain samples
already; more are drawn for each problem by itself until plain sampling has cost at least as many tokens as RSA did, and
less than one completion more. pass@1 is the mean score over these samples, majority the score of the answer that most
of them give (the first of equals). A completion that did not end within β is no answer: it scores 0 and has no vote.
Prompts are not free: RSA reads C·τ more tokens in each of N·T prompts, which this comparison leaves out.

## Held out

Evaluation asks questions whose text falls into a tenth that preparation and reinforcement learning never draw
(`held_out` in `jobs/zaya/envs/base.py`), and measures the loss on the last twentieth of each text, which no training
reads (`jobs/zaya/training/data.py`).
"""

_EXPERIMENT = """
## Does it pay to train on aggregation prompts?

The question of the ZAYA1 report at toy size, by `make bench NAME=rsa ARGS=--page`, which writes this page: **every
figure below is of that one run**. For each of {seeds} seeds a model of {parameters:,} parameters is trained from
scratch for {before} steps of {rows} tokens on {examples} solved problems of each of `{environments}`, and
stopped while it still errs (*before*). From its weights two models go on for {after} steps on the same new problems.
*With*: {share:.0%} of the examples show {c} candidates that the first model sampled, right or wrong. *Without*: none
does. Then all answer {problems} held-out problems, N = {n}, C = {c}, T = {t}, β = {beta}, τ = {tau}. The interval is
Student's of the mean over the seeds (95 %), the two models of a seed being a pair; with so few seeds it rests on their
differences being roughly normal. An interval that holds zero is *no effect*.
"""

_UNMEASURED = """
## Does it pay to train on aggregation prompts?

`make bench NAME=rsa ARGS=--page` trains the models that answer this and writes its figures here. They are not here yet.
"""

_LIMITS = """
## What this does not say

- **It is supervised training alone.** The report's models saw aggregation prompts in reinforcement learning too.
- **A model that never saw the mark TAIL cannot read such a prompt.** Its loss under RSA says that the format is
  unknown, not that it reasons worse; the line that compares RSA with the prompts to the better plain method *without*
  them is the one that asks whether the training was worth its cost.
- **Examples with candidates are longer**, so a model that sees them sees fewer examples in the same steps.
- The candidates come from the model before the last steps, which errs more than the one that is asked in the end.
- The tasks' lengths and the numbers of steps were chosen after looking at seeds 0 and 1; the seeds above are others.
- Micro-tasks on short strings are no measure of reasoning, and a candidate's tail holds its whole answer here.
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def page(lines: Sequence[Line], facts: Line) -> str:
    """The whole page; without lines it says that nothing was measured."""
    if not lines:
        return "\n".join([_METHOD.rstrip("\n"), _UNMEASURED])
    models = [
        (
            one["seed"],
            one["arm"],
            f"{one['pass@1']:.3f}",
            f"{one['peer_value']:.3f}",
            f"{one['value']:.3f}",
            f"{one['rsa_tokens']:.0f}",
            f"{one['plain_tokens']:.0f}",
        )
        for one in lines
        if "arm" in one
    ]
    effects = [
        (one["name"], f"{one['value']:+.3f}", f"{one['interval'][0]:+.3f} to {one['interval'][1]:+.3f}", one["found"])
        for one in lines
        if "found" in one
    ]
    return "\n".join(
        [
            _METHOD.rstrip("\n"),
            _EXPERIMENT.format(**facts),
            _table(["seed", "model", "pass@1", "majority", "RSA", "RSA tokens", "plain tokens"], models),
            _table(["over the seeds", "mean", "95 % interval", "found"], effects).rstrip("\n"),
            _LIMITS.rstrip("\n"),
            "",
        ]
    )


def write_page(lines: Sequence[Line], facts: Line) -> None:
    """Writes docs/rsa.md anew."""
    PAGE.write_text(page(lines, facts))
