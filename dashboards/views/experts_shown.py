"""What the Experts page shows now, in one value: the run, what is known of it, and what the address chose.

Why it exists: head, map and panels must agree on it, so it is read once for each drawing of the page. Not a store.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import streamlit as st

from dashboards import charts, data, theme
from dashboards.views import experts_address as address

Row = Mapping[str, Any]
LIVE_STATUS = ("active", "queued", "paused", "needs_human")


@dataclass(frozen=True, slots=True)
class Shown:
    """One run as the page shows it; `summary` is of its newest record, `step` the past one that the address names."""

    run: Row
    summary: Row
    layer: int
    expert: int | None
    step: int | None
    steps: int | None
    """how many steps the time axes show; None for all"""

    @property
    def run_id(self) -> str:
        return str(self.run["id"])

    @property
    def name(self) -> str:
        return str(self.run.get("name") or self.run_id)

    @property
    def live(self) -> bool:
        return is_live(self.run)

    @property
    def layers(self) -> int:
        return int(self.summary.get("layers") or 1)

    @property
    def newest(self) -> int:
        return int(self.summary.get("step") or 0)

    @property
    def stretch(self) -> charts.Stretch:
        """What pictures with a time axis show."""
        return charts.Stretch(self.run_id, self.steps, self.step, self.live)


def of(run: Row, summary: Row) -> Shown:
    """The run as the address wants it seen: the worst layer unless one is named."""
    layer = address.number_of("layer", int(summary.get("layers") or 1))
    return Shown(
        run=run,
        summary=summary,
        layer=worst_layer(summary) if layer is None else layer,
        expert=address.number_of("expert", int(summary.get("experts") or 1)),
        step=replayed(summary),
        steps=address.window_steps(),
    )


def is_live(run: Row) -> bool:
    """True while more steps may come."""
    return run.get("status") in LIVE_STATUS


def replayed(summary: Row | None) -> int | None:
    """The step that the address names, at most the newest one; None while the page follows the run."""
    newest = int((summary or {}).get("step") or 0)
    if "step" not in st.query_params or newest < 1:
        return None
    named = address.number_of("step", newest + 1)
    return newest if named is None else named


def read_summary(run_id: str, *, quiet: bool = False) -> Row | None:
    """The summary of the run's newest record; None when there is none yet or it cannot be read now."""
    path = f"runs/{quote(run_id, safe='')}/experts/summary"
    try:
        found = data.get(path)
    except data.ApiError as error:
        if error.status == 404:
            return None
        found = theme.load(path, quiet=quiet)
    return found if isinstance(found, dict) and found.get("layers") else None


def worst_layer(summary: Row) -> int:
    """The layer that the summary calls the worst; the first when it does not say."""
    worst = summary.get("worst_layer")
    found = worst.get("layer") if isinstance(worst, dict) else worst
    return int(found) if isinstance(found, int | float) else 0


def sentence_of(summary: Row) -> tuple[str, str, str]:
    """(lead, rest, level) of the summary's sentence, whether it comes as text or in its parts."""
    told = summary.get("sentence")
    if isinstance(told, dict):
        return str(told.get("lead") or ""), str(told.get("rest") or ""), str(told.get("level") or "ok")
    lead, stop, rest = str(told or "").partition(". ")
    return lead + stop.strip(), rest, str(summary.get("level") or "ok")
