"""docs/rsa.md, written from the figures of one run of the bench: the words are here, the numbers are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.rsa_figures import ARMS, STAGES, WORTH_IT, Line

LAST = STAGES[-1]
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
stopped while it still errs (*before*). From its weights two models go on, *with* and *without* aggregation prompts:

| | with | without |
| --- | --- | --- |
| SFT, {after} steps on the same new problems | {share:.0%} of the examples show {c} candidates that the first model \
sampled, right or wrong | none does |
| RL after it, {rl_steps} steps ({rl_rate}, frozen routers, routes replayed) | {asked} questions a step, {samples} \
completions each, {share:.0%} of the questions with {c} candidates of the model's own | {asked_plain} questions a \
step, {samples} completions each, no candidates |

The candidates of RL are generated too, so the model without them gets more questions: both generate about as many
tokens in training ({tokens}). After SFT and after RL each answers {problems} held-out problems,
N = {n}, C = {c}, T = {t}, β = {beta}, τ = {tau}. The interval is Student's of the mean over the seeds (95 %), the two
models of a seed being a pair; with so few seeds it rests on their differences being roughly normal. An interval that
holds zero is *no effect*.
"""

_UNMEASURED = """
## Does it pay to train on aggregation prompts?

`make bench NAME=rsa ARGS=--page` trains the models that answer this and writes its figures here. They are not here yet.
"""

_LIMITS = """
## What this does not say

- **A model that never saw the mark TAIL cannot read such a prompt.** Its score under RSA says that the format is
  unknown, not that it reasons worse; the line that compares RSA with the prompts to the better plain method *without*
  them is the one that asks whether the training was worth its cost.
- **{count} intervals are told, each of 95 %**: of that many, {chance} would miss zero by chance if nothing had an
  effect.
- **What is equal is not everything.** In SFT, examples with candidates are longer, so a model that sees them sees
  fewer examples in the same steps; in RL it is asked fewer questions for the same generated tokens.
- In SFT the candidates come from the model before the last steps, which errs more than the one that learns.
- The tasks' lengths and the steps' numbers and rates were chosen after looking at seeds 0 and 1, RL's rate for the
  model with the prompts of seed 0; the seeds above are others.
- Micro-tasks on short strings are no measure of reasoning, and a candidate's tail holds its whole answer here.
"""

_VERDICTS = {
    "gain": "they pay: RSA after them scores above the better plain method of models that never saw them",
    "loss": "they do not pay here: models that never saw them, asked plainly, score higher at equal generated tokens",
    "no effect": "no effect: neither RSA after them nor plain training, asked plainly, is shown to score higher",
}


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def _cell(line: Line) -> str:
    """A figure with its interval and what it lets one say."""
    low, high = line["interval"]
    return f"{line['value']:+.3f} ({low:+.3f} to {high:+.3f}), {line['found']}"


def _figures(lines: Sequence[Line], table: str, head: str, columns: Mapping[str, str]) -> str:
    """A table of figures, one row each; `columns` has the lines' names of them and the page's."""
    cells = {(one["row"], one["column"]): _cell(one) for one in lines if one.get("table") == table}
    rows = dict.fromkeys(row for row, _ in cells)
    return _table([head, *columns.values()], [[row, *(cells[row, column] for column in columns)] for row in rows])


def _models(lines: Sequence[Line]) -> str:
    rows = [
        (
            one["seed"],
            one["arm"] if one["arm"] == one["stage"] else f"{one['arm']}, {one['stage']}",
            f"{one['pass@1']:.3f}",
            f"{one['peer_value']:.3f}",
            f"{one['value']:.3f}",
            f"{one['rsa_tokens']:.0f}",
            f"{one['plain_tokens']:.0f}",
            _rewards(one["training"]),
        )
        for one in lines
        if "arm" in one
    ]
    head = ["seed", "model", "pass@1", "majority", "RSA", "RSA tokens", "plain tokens", "reward in RL"]
    return _table(head, rows)


def _rewards(training: Line) -> str:
    """The mean reward over the first fifth of RL's steps and over the last."""
    return f"{training['first_reward']:.3f} → {training['reward']:.3f}" if "reward" in training else ""


def _tokens(lines: Sequence[Line]) -> str:
    """What RL generated, the mean over the seeds of each arm."""
    told = []
    for arm in ARMS:
        each = [one["training"]["generated_tokens"] for one in lines if one.get("arm") == arm and one["stage"] == LAST]
        told.append(f"{fmean(each):,.0f} {arm}")
    return ", ".join(told)


def answer(lines: Sequence[Line]) -> str:
    """What the figures say, in a few sentences; the words follow from the intervals."""
    figures = {(one["row"], one["column"]): one for one in lines if "table" in one}

    def told(row: str, column: str = LAST) -> str:
        return _cell(figures[row, column])

    plain = fmean(
        max(one["pass@1"], one["peer_value"])
        for one in lines
        if (one.get("arm"), one.get("stage")) == ("without", LAST)
    )
    verdict = _VERDICTS[figures[WORTH_IT, LAST]["found"]]
    return f"""\
**Answer of this run: {verdict}.**
{WORTH_IT}, after SFT and RL: {told(WORTH_IT)}.
That method stands at {plain:.3f}, so no more than {1 - plain:.3f} could be gained.

- RSA less majority after SFT and RL: {told("RSA less maj, with the prompts")} in models with the prompts,
  {told("RSA less maj, without the prompts")} in those without.
- RSA less pass@1: {told("RSA less pass@1, with the prompts")} with,
  {told("RSA less pass@1, without the prompts")} without.
- The prompts' effect on RSA less majority: {told("effect of the prompts on RSA less maj")};
  on majority itself: {told("effect of the prompts on maj")}.
- What RL changes in RSA less majority of the models with the prompts: {told("RSA less maj", "with")}.
"""


def page(lines: Sequence[Line], facts: Line) -> str:
    """The whole page; without lines it says that nothing was measured."""
    if not lines:
        return "\n".join([_METHOD.rstrip("\n"), _UNMEASURED])
    count = sum("table" in one for one in lines)
    changes = {arm: f"{arm} the prompts" for arm in ARMS} | {"with less without": "with less without"}
    return "\n".join(
        [
            _METHOD.rstrip("\n"),
            _EXPERIMENT.format(**facts, tokens=_tokens(lines)),
            answer(lines),
            _figures(lines, "stages", "over the seeds", {stage: f"after {stage}" for stage in STAGES}),
            "What RL changes: a model after SFT + RL less the same after SFT.\n",
            _figures(lines, "changes", "over the seeds", changes),
            _models(lines).rstrip("\n"),
            _LIMITS.format(count=count, chance=f"{count * 0.05:.1f}").rstrip("\n"),
            "",
        ]
    )


def write_page(lines: Sequence[Line], facts: Line) -> None:
    """Writes docs/rsa.md anew."""
    PAGE.write_text(page(lines, facts))
