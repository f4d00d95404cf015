"""The form of a submission: which values it asks for, and how they get into the draft and out of it.

Why it exists: the draft is the only truth. A field is seeded from it before each run and writes into it when it is
changed; the YAML box replaces it whole. Nothing is judged here: problems come from the server and stand at their path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import streamlit as st

from dashboards import draft

Row = Mapping[str, Any]
STATE = "submit_draft"


@dataclass(frozen=True)
class Field:
    """One value of the job: its path as the server names it, its label, how it is asked for."""

    path: str
    label: str
    kind: Literal["text", "whole", "number", "choice", "switch"]
    options: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    help: str = ""

    @property
    def key(self) -> str:
        """The widget's key."""
        return f"submit:{self.path}"


@dataclass(frozen=True)
class Part:
    """A part of the form: its anchor, its heading, and its fields in rows."""

    anchor: str
    heading: str
    rows: tuple[tuple[Field, ...], ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the part's fields."""
        return tuple(field.path for row in self.rows for field in row)


JOB = Part(
    "job",
    "Job",
    (
        (Field("metadata.name", "Name", "text"),),
        (Field("train.steps", "Steps", "whole"), Field("train.seed", "Seed", "whole")),
    ),
)
MODEL = Part(
    "model",
    "Model and data",
    (
        (Field("router.experts", "Experts", "whole"), Field("router.skipBias", "Skip-slot bias", "number")),
        (
            Field("train.sequences", "Sequences a step", "whole"),
            Field("train.length", "Length", "whole", help="tokens a sequence"),
        ),
    ),
)
RESOURCES = Part(
    "resources",
    "Resources",
    (
        (
            Field("resources.nodes", "Nodes", "whole"),
            Field("resources.gpusPerNode", "GPUs a node", "whole"),
            Field("train.checkpointEvery", "Checkpoint every", "whole", help="steps"),
        ),
    ),
)
FAULTS = Part(
    "faults",
    "If something fails",
    (
        (
            Field("faults.restarts", "Restarts without a person", "whole"),
            Field("faults.graceSeconds", "Time to save, s", "number", help="from the signal to the end of the ranks"),
        ),
        (
            Field(
                "faults.mode",
                "The system may",
                "choice",
                ("observe", "advise", "act"),
                ("watch", "advise", "act"),
                "watch: it records what it would do; advise: a person approves; act: it restarts by itself",
            ),
        ),
    ),
)
PARTS = (JOB, MODEL, RESOURCES, FAULTS)
STEPS = (("template", ()), ("model and data", (JOB, MODEL)), ("resources, faults", (RESOURCES, FAULTS)), ("review", ()))


def current() -> draft.Draft:
    """The draft of this session."""
    value: draft.Draft = st.session_state[STATE]["draft"]
    return value


def draw(part: Part, problems: Sequence[Row]) -> None:
    """The part's fields, each with the server's problems under it."""
    for row in part.rows:
        shown = [field for field in row if _asked(field)]
        for column, field in zip(st.columns(len(shown)) if shown else (), shown, strict=True):
            with column:
                _widget(field)
                for message in draft.problems_at(problems, field.path):
                    st.html(f'<p class="tt-problem" role="alert">× {escape(field.path)}: {escape(message)}</p>')


def _asked(field: Field) -> bool:
    """A value is asked for when the job's own template has a place for it."""
    return draft.get(current(), field.path.rsplit(".", 1)[0]) is not None


def _widget(field: Field) -> None:
    value = draft.get(current(), field.path)
    take: dict[str, Any] = {"key": field.key, "on_change": _take, "args": (field,), "help": field.help or None}
    if field.kind == "switch":
        st.session_state[field.key] = bool(value)
        st.toggle(field.label, **take)
    elif field.kind == "choice":
        words = dict(zip(field.options, field.words, strict=True))
        st.session_state[field.key] = value if value in words else None
        st.segmented_control(
            field.label, field.options, format_func=lambda option: words[option], required=True, **take
        )
    elif field.kind == "whole" and (value is None or _is_whole(value)):
        st.session_state[field.key] = value
        st.number_input(field.label, step=1, **take)
    else:
        st.session_state[field.key] = "" if value is None else str(value)
        st.text_input(field.label, **take)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _take(field: Field) -> None:
    """Write the widget's value into the draft; a number that does not read as one goes in as it is, for the server."""
    value = st.session_state[field.key]
    if field.kind == "number":
        value = as_number(str(value))
    set_draft(draft.with_value(current(), field.path, value))


def as_number(text: str) -> Any:
    """The number in a text (whole if it is whole), or the text itself when it is none."""
    try:
        value = float(text.replace("−", "-").strip())
    except ValueError:
        return text
    if value != value or abs(value) == float("inf"):
        return text
    return int(value) if value.is_integer() and "." not in text and "e" not in text.lower() else value


def set_draft(value: draft.Draft) -> None:
    """Replace the draft; what was submitted before it is another submission, so the next one gets a new key."""
    state = st.session_state[STATE]
    state["draft"] = value
    state.pop("key", None)
    state.pop("refused", None)
