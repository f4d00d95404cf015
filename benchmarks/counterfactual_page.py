"""docs/counterfactual.md, written from the figures of one run of the bench: the words are here, the numbers are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "counterfactual.md"

_INTRODUCTION = """\
# Counterfactual: another balancing controller over a recorded run

`trimtab experts replay RUN` fits how the load of each layer answers its biases, lets other controllers run over
the record, and shows the balance that each is predicted to give. This page is written by `make bench
NAME=counterfactual ARGS=--page`, which trains what was predicted: **every figure below is of that one run**.

## What is fitted

For each layer one gain *g* from the bias *b* to the load *p* (`controlplane/rules/expert_response.py`): p =
softmax(a + g·f) or its linear form, whichever predicts steps better that it was not fitted to. *f* is the bias
less its running mean with a **fade**: a router that trains under a standing bias learns it away. *a* is what the
router wants by itself, a random walk seen through sampling noise; its size against the noise is the **ratio**.
Fade and ratio are those of the highest likelihood on a grid, g is then weighted least squares on the innovations
of the Kalman filter.

- The size of the noise, in units of independent tokens, is the **design effect**. It is measured from the spread
  between ranks (here between the sequences of a step). Without it walk and noise are taken for each other, and g
  can be off several times.
- **R²** is of the next step's shares on the last 30 % of the record, against the same filter that knows no bias:
  what the bias explains of one step is little, as most of a step is sampling noise.
- A layer whose bias did not move, or whose gain is below two standard errors, **cannot be told**: it has no figure
  and counts nowhere.
- Standard errors hold for the ratio and fade that were found; with those unknown they are too small. Under `pi`
  and `pid` the bias is a linear function of the shares seen, and walk, noise and answer are harder to tell apart
  than under `adamw` or `sign`: on made-up routers the gain comes out up to 1.8 times too large.

**frozen** is the peer of g: the answer of the trained router at rest to a bias moved by 0.005, at the record's
beginning and end (geometric mean). One number for experts that differ among themselves; it grows where many tokens
are nearly tied.
"""

_REPLAY = """
## What is replayed

From the record's first step, on its own noise, each controller of `jobs/zaya/training/balance.py` with several gains:
{tried}. PI and PID gains are in units of E ÷ g, which undoes an error of a median layer in one step. The interval
is the spread of draws in which the router's movement, the noise and the gain are as likely as the record leaves
them. Trained again, from the same prefix and on the same batches: the best predicted (*proposed*), the best of
other families, the worst that is predicted to swing, and none. CV is the mean of the judged steps and layers in
sampling floors; settling is from the start of the replay.
"""

_LIMITS = """
## Where the prediction fails

- **Far from the record.** Without balancing the router goes its own way, and the fitted fade is all that the
  replay knows of this. Take the figure of `none` as a direction.
- **Large swings.** g holds for changes of the size that the record has. Near-tied tokens are few, so a large move
  is answered by less than g says and a swing that is predicted without bound is bounded in truth, or by more where
  a whole kind of token tips over.
- **Small differences.** Controllers whose predictions differ by less than a tenth are not told apart; their order
  is chance.
- **The router learns under the controller.** Gains fitted under one controller drift under another. The shorter
  the look ahead and the smaller the learning rate, the better.
- The toy is small ({experts} experts, {tokens:,} tokens a step, {layers} layers) and its text is bytes: tokens of
  a kind move together, more than those of a large vocabulary. Nothing here was measured on a large model.
"""


def write_page(lines: Sequence[Line], fits: Sequence[Line], facts: Line) -> None:
    """Replaces the page: a table of the fits, one of the predictions, one of what they come to."""
    predictions = [line for line in lines if line["peer"]]
    together = [line for line in lines if not line["peer"]]
    parts = [
        _INTRODUCTION,
        _table(
            "seed|layer|model|g|frozen|fade|ratio|design effect|R² softmax|R² linear",
            [_fit_row(one) for one in fits],
        ),
        _REPLAY.format(**facts),
        _table(
            "seed|why|controller|CV predicted|interval|CV trained|recorded|MaxVio|lag-1|settles in steps",
            [_prediction_row(one) for one in predictions],
        ),
        "\nWhere a cell has two figures, the first is predicted and the second trained.\n\n## Together\n",
        _table("figure|value|target|each", [_together_row(one) for one in together]),
        _LIMITS.format(**facts),
    ]
    PAGE.write_text("\n".join(part.rstrip("\n") if part.startswith("|") else part for part in parts))


def _table(head: str, rows: Sequence[Sequence[str]]) -> str:
    titles = head.split("|")
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def _fit_row(one: Line) -> list[str]:
    gain = f"{_number(one['gain'], 1)} ± {_number(one['gain_error'], 1)}" if one["known"] else "cannot be told"
    figures = [_number(one["frozen"], 1), _number(one["fade"], 3), _number(one["ratio"], 3), _number(one["design"], 1)]
    return [str(one["seed"]), str(one["layer"]), one["model"], gain, *figures, *map(_number, one["r2"])]


def _prediction_row(one: Line) -> list[str]:
    pairs = [f"{_number(one[name][0])}, {_number(one[name][1])}" for name in ("maxvio", "lag1")]
    return [
        str(one["seed"]),
        one["why"],
        one["controller"],
        _number(one["value"]),
        f"{_number(one['interval'][0])}–{_number(one['interval'][1])}",
        _number(one["peer_value"]),
        _number(one["recorded_cv"]),
        *pairs,
        f"{one['settle_steps'][0]}, {one['settle_steps'][1]}",
    ]


def _together_row(one: Line) -> list[str]:
    sign = "≥" if one["better"] == "higher" else "≤"
    target = "–" if one["target"] is None else f"{sign} {one['target']:g}"
    return [one["name"], _number(one["value"]), target, ", ".join(map(_number, one["each"]))]
