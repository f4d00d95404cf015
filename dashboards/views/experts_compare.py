"""Two runs beside each other: their maps or the ratio of their loads, their distance from the floor, their figures.

Why it exists: "is this better than before" is the question after every change of a controller. Shapes may differ: then
there is no ratio, and the page says so. Both runs share the page's time cursor, by step.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import streamlit as st

from dashboards import charts, data, markup, theme, words
from dashboards.views import experts_address as address
from dashboards.views import experts_shown
from dashboards.views.experts_shown import Shown

Row = Mapping[str, Any]
NONE = ""


def other_of(runs: Sequence[Row], shown: Shown) -> Row | None:
    """The run that the address compares with, by id or name; None when it names none or the same one."""
    named = str(st.query_params.get("with") or "")
    found = [row for row in runs if named and named in (str(row["id"]), str(row.get("name")))]
    if not found and named:
        try:
            found = [data.get(f"runs/{quote(named, safe='')}")]
        except data.ApiError:
            return None
    return found[0] if found and str(found[0]["id"]) != shown.run_id else None


def maps(runs: Sequence[Row], shown: Shown) -> None:
    """Both maps, or the one of their ratio."""
    view = address.choice("view", address.VIEWS, "side")
    faint = "log₂(share × E) of both" if view == "side" else "load here ÷ load there"
    with theme.section_row("Two runs", faint, key="experts_two"):
        address.segmented("View", "view", address.VIEWS, "side")
    other = other_of(runs, shown)
    if other is None:
        _ask(runs, shown)
        return
    summary = experts_shown.read_summary(str(other["id"]))
    if summary is None:
        theme.empty(f"{other.get('name')} has written no expert records, so there is nothing to compare with.")
        return
    if view == "difference":
        charts.difference(
            (shown.run_id, str(other["id"])),
            key=f"difference_{shown.run_id}_{other['id']}",
            layer=shown.layer,
            expert=shown.expert,
            step=shown.step,
            live=shown.live,
            picked=address.picked,
        )
        return
    for column, run, told in zip(st.columns(2, gap="small"), (shown.run, other), (shown.summary, summary), strict=True):
        with column:
            _one(run, told, shown)


def _one(run: Row, summary: Row, shown: Shown) -> None:
    """One of the two maps, under its run's name; a layer that it lacks is not marked."""
    run_id, layers = str(run["id"]), int(summary.get("layers") or 1)
    name, experts = str(run.get("name") or run_id), int(summary.get("experts") or 1)
    st.html(f'<div class="tt-facts"><b>{theme.escape(name)}</b><span>{layers} layers × {experts} experts</span></div>')
    charts.experts(
        run_id,
        key=f"two_{run_id}",
        layer=shown.layer if shown.layer < layers else None,
        expert=shown.expert if shown.layer < layers and (shown.expert or 0) < experts else None,
        step=shown.step,
        live=experts_shown.is_live(run),
        layers=layers,
        bare=True,
        picked=address.picked,
    )


def _ask(runs: Sequence[Row], shown: Shown) -> None:
    others = [row for row in runs if str(row["id"]) != shown.run_id]
    named = str(st.query_params.get("with") or "")
    if named and named != shown.run_id:
        theme.empty(f"There is no run {named} to compare with.")
    elif others:
        theme.empty("Choose the run to compare with, at the right.")
    else:
        theme.empty("There is no other run to compare with yet.", "Submit one", "submit")


def figures(runs: Sequence[Row], shown: Shown) -> None:
    """The choice of the other run; both courses on one axis; both runs' figures."""
    names = {NONE: "choose a run…"} | {
        str(row["id"]): str(row.get("name") or row["id"]) for row in runs if str(row["id"]) != shown.run_id
    }
    other = other_of(runs, shown)
    if other is not None:
        names |= {str(other["id"]): str(other.get("name") or other["id"])}
    st.session_state["experts_with"] = str(other["id"]) if other is not None else NONE
    with theme.section_row(f"{shown.name} against another", "CV ÷ floor over all steps", key="experts_with"):
        st.selectbox(
            "With", list(names), key="experts_with", format_func=names.__getitem__, width=220,
            label_visibility="collapsed", on_change=_name_other,
        )  # fmt: skip
    if other is None:
        return
    charts.curves(
        (shown.run_id, str(other["id"])),
        (shown.name, names[str(other["id"])]),
        key=f"curves_{shown.run_id}_{other['id']}",
        step=shown.step,
        live=(shown.live, experts_shown.is_live(other)),
        picked=address.picked,
    )
    summary = experts_shown.read_summary(str(other["id"]), quiet=True)
    if summary is not None:
        theme.section("Both in figures", "of the newest record of each", "now")
        st.html(table(shown.name, shown.summary, names[str(other["id"])], summary))


def _name_other() -> None:
    address.put("with", st.session_state["experts_with"] or None)


def table(name: str, one: Row, other_name: str, other: Row) -> str:
    """Both runs' figures as markup, a row each; what one of them does not have is a dash."""
    rows = [
        [label, f"<b>{theme.escape(text(one))}</b>", f"<b>{theme.escape(text(other))}</b>"]
        for label, text in FIGURES.items()
    ]
    heads = [("", "tt-quiet"), (name, "tt-num"), (other_name, "tt-num")]
    return markup.table(heads, rows, "tt-compact")


def _times(summary: Row, name: str) -> str:
    found = (summary.get(name) or {}).get("cv_floor")
    return "–" if found is None else f"{words.figure(found, 3)}×"


def _maxvio(summary: Row) -> str:
    found = (summary.get("maxvio") or {}).get("last_window")
    return "–" if found is None else words.figure(found, 3)


def _tile(label: str) -> Callable[[Row], str]:
    def of(summary: Row) -> str:
        tile = next((tile for tile in summary.get("tiles") or () if tile.get("label") == label), None)
        return "–" if tile is None else f"{tile.get('value', '–')} {tile.get('unit') or ''}".strip()

    return of


FIGURES: Mapping[str, Callable[[Row], str]] = {
    "step": lambda summary: words.number(summary.get("step")),
    "layers × experts, top-k": lambda s: f"{s.get('layers')} × {s.get('experts')}, top-{s.get('top_k', '–')}",
    "tokens a step": lambda summary: words.number(summary.get("tokens")),
    "sampling floor, CV": lambda s: "–" if s.get("floor_cv") is None else words.figure(s["floor_cv"], 3),
    "worst layer, CV ÷ floor": lambda summary: _times(summary, "worst_layer"),
    "median layer, CV ÷ floor": lambda summary: _times(summary, "median_layer"),
    "mean MaxVio, last steps": _maxvio,
    "dead experts": _tile("dead experts"),
    "effective experts": _tile("effective experts"),
    "skip share": _tile("skip share"),
    "oscillating": _tile("oscillating"),
}
