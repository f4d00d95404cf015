"""The building blocks of every page as markup: title, tiles, section heads, chips, glyphs, states.

Why it exists: whatever comes from outside (names, messages, kernel lines) is escaped here by default, so a page cannot
forget it. Pure functions over plain values; theme.py puts the markup on the page. Streamlit's `st.html` drops inline
SVG, so glyphs are characters in small squares: shape and word say the state as well as the colour.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

Row = Mapping[str, Any]

# The glyph of a level; a level that is not listed says nothing by shape.
GLYPHS: Mapping[str, str] = {
    "ok": "●",
    "info": "●",
    "warn": "!",
    "warning": "!",
    "fault": "×",
    "error": "×",
    "critical": "×",
    "off": "–",
    "nodata": "?",
}
LEVELS: Mapping[str, str] = {"warning": "warn", "error": "fault", "critical": "fault", "info": "ok"}


def level_name(level: object) -> str:
    """One of ok, warn, fault, off, nodata for any word the API uses for a level or a severity."""
    text = str(level or "off")
    return LEVELS.get(text, text if text in GLYPHS else "off")


def glyph(level: object, sign: str = "") -> str:
    """A square of 15 px with the level's sign."""
    name = level_name(level)
    return f'<i class="tt-glyph tt-{name}" aria-hidden="true">{escape(sign or GLYPHS[name])}</i>'


def chip(text: object, level: object = "off", href: str = "") -> str:
    """A small label, a link when `href` is given."""
    inner, name = escape(str(text)), level_name(level)
    if href:
        return f'<a class="tt-chip tt-{name}" href="{escape(href)}" target="_self">{inner}</a>'
    return f'<span class="tt-chip tt-{name}">{inner}</span>'


def link(text: object, page: str, params: Mapping[str, object] | None = None, css: str = "") -> str:
    """An inner link: a page's name as in the address, its query, its text escaped."""
    return f'<a class="{escape(css)}" href="{escape(href(page, params))}" target="_self">{escape(str(text))}</a>'


def href(page: str, params: Mapping[str, object] | None = None) -> str:
    """The address of a page; Now is the root."""
    path = "/" if page in ("", "now") else f"/{page}"
    return f"{path}?{urlencode({key: str(value) for key, value in params.items()})}" if params else path


def sentence(lead: object, rest: object = "", level: object = None, big: bool = False) -> str:
    """The sentence a page begins with: what matters in bold, the rest quiet; a glyph only when it is not ok."""
    sign = glyph(level) + " " if level and level_name(level) not in ("ok", "off") else ""
    size = " tt-big" if big else ""
    return f'<p class="tt-sentence{size}">{sign}<b>{escape(str(lead))}</b> <span>{escape(str(rest))}</span></p>'


def title(
    parent: str, parent_page: str, name: str, status: tuple[str, str, str] | None, facts: str, extra: str = ""
) -> str:
    """Breadcrumb, name, a state as (level, glyph, words), quiet facts; `extra` is markup that is already safe."""
    crumb = f"{link(parent, parent_page)}<em>/</em>" if parent else ""
    state = ""
    if status:
        level, sign, text = status
        state = f'<span class="tt-chip tt-{level_name(level)} tt-state">{escape(sign)} {escape(text)}</span>'
    quiet = f"<small>{escape(facts)}</small>" if facts else ""
    return f'<div class="tt-title">{crumb}<h1>{escape(name)}</h1>{state}{quiet}{extra}</div>'


def tiles(rows: Sequence[Row], *, widest_first: bool = False, big: bool = False) -> str:
    """A row of tiles {label, value, unit, context, level}; a glyph only on one that is not ok."""
    cells = []
    for row in rows:
        level = level_name(row.get("level") or "ok")
        sign = glyph(level) + " " if level not in ("ok", "off") else ""
        cells.append(
            f'<div class="tt-tile"><label>{sign}{escape(str(row.get("label", "")))}</label>'
            f"<div><b>{escape(str(row.get('value', '–')))}</b> <span>{escape(str(row.get('unit') or ''))}</span></div>"
            f"<small>{escape(str(row.get('context') or ''))}</small></div>"
        )
    first = "1.5fr " if widest_first and len(cells) > 1 else ""
    count = len(cells) - bool(first)
    size = " tt-big" if big else ""
    style = f"--tt-columns:{first}repeat({max(count, 1)},minmax(0,1fr))"
    return f'<div class="tt-tiles{size}" style="{style}">{"".join(cells)}</div>'


def section(heading: str, faint: str = "", right: str = "") -> str:
    """A hairline, a heading, a faint explanation, a word at the far right."""
    quiet = f"<small>{escape(faint)}</small>" if faint else ""
    end = f"<em>{escape(right)}</em>" if right else ""
    return f'<div class="tt-section"><h2>{escape(heading)}</h2>{quiet}{end}</div>'


def table(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], css: str = "") -> str:
    """A table of at most some twenty rows; heads are (name, class), cells are markup that is already safe."""
    head = "".join(f'<th class="{escape(kind)}">{escape(name)}</th>' for name, kind in heads)
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{escape(kind)}">{cell}</td>' for cell, (_, kind) in zip(row, heads, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<table class="tt-table {escape(css)}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def badges(text: str, *, stale: bool = False, simulated: bool = False, quiet: bool = False) -> str:
    """How old the data is, and SIMULATED where the nodes are; nothing at all where neither is known."""
    parts = []
    if text:
        kind = " tt-stale" if stale else " tt-ended" if quiet else ""
        parts.append(f'<span class="tt-age{kind}"><i></i>{escape(text)}</span>')
    if simulated:
        parts.append('<span class="tt-simulated">SIMULATED</span>')
    return f'<div class="tt-badges">{"".join(parts)}</div>'


def empty(text: str, action: str = "", page: str = "", params: Mapping[str, object] | None = None) -> str:
    """An empty place: why it is empty, and one action."""
    act = f" {link(action, page, params)}" if action else ""
    return f'<div class="tt-empty">{escape(text)}{act}</div>'


def problem(lead: str, detail: str, code: str, note: str) -> str:
    """What failed, its code, when it is tried again and whether the run is affected."""
    tail = f"<code>{escape(code)}</code> " if code else ""
    return (
        f'<div class="tt-problem-block" role="alert">{glyph("fault")} <b>{escape(lead)}</b> {escape(detail)}'
        f"<small>{tail}{escape(note)}</small></div>"
    )


def old_values(lead: str) -> str:
    """One line over values that could not be read anew."""
    said = f"<b>{escape(lead)}</b> Last known values; tried again every 5 s."
    return f'<div class="tt-old" role="alert">{glyph("warn")} {said}</div>'


def lit_tab(page: str) -> str:
    """The rule that gives a page's tab the look of the current one."""
    tab = f'[data-testid=stTopNavLink][href$="/{file_name(page)}"]'
    lit = "light-dark(rgba(171, 171, 171, 0.25), rgba(161, 177, 191, 0.25))"
    return f"{tab} {{ background: {lit}; }} {tab} p {{ font-weight: 600; }}"


def file_name(name: str) -> str:
    """A name reduced to letters, digits, dot, dash and underscore: safe in a file name, a key and a CSS class."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def plain(text: str) -> str:
    """Text for a Streamlit label or message in which nothing is Markdown."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]()#+-.!|<>~$:&" else char for char in text)
