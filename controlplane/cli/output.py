"""What every verb of the CLI shares: the connection, output in five forms, exit codes, deep links."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from controlplane.client import ApiError, Client, Unreachable
from controlplane.services.durations import duration

Json = dict[str, Any]
Column = tuple[str, Callable[[Json], object]]


class EXIT(IntEnum):
    """How a command ended."""

    OK = 0
    ERROR = 1
    USAGE = 2
    TIMEOUT = 3
    AUTH = 4
    FORBIDDEN = 5
    UNREACHABLE = 6
    FAILED = 100
    UNFINISHED = 101
    NOT_FOUND = 102
    CANCELLED = 103


class Exit(Exception):
    """Ends the command with a code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = int(code)


class Form(StrEnum):
    """How data is printed."""

    table = "table"
    wide = "wide"
    json = "json"
    yaml = "yaml"
    name = "name"


Output = Annotated[Form, typer.Option("-o", "--output", help="table, wide, json, yaml or name")]


def hint(sentence: str) -> None:
    """A sentence for the person, on stderr."""
    print(sentence, file=sys.stderr, flush=True)


def connect() -> Client:
    """The server of TRIMTAB_URL with the token of TRIMTAB_TOKEN, or the ones of this folder's `trimtab serve`.

    TRIMTAB_TLS_CA names the authority that its certificate is checked by.
    """
    url = os.environ.get("TRIMTAB_URL", "http://127.0.0.1:8440")
    token = os.environ.get("TRIMTAB_TOKEN", "")
    kept = Path(os.environ.get("TRIMTAB_DATA", ".trimtab")) / "admin-token"
    if not token and kept.exists():
        token = kept.read_text().strip()
    if not token:
        hint("No token: set TRIMTAB_TOKEN, or run this beside the data folder of `trimtab serve`.")
        raise Exit(EXIT.AUTH)
    return Client(url, token, os.environ.get("TRIMTAB_TLS_CA", ""))


def show(
    rows: Sequence[Json], columns: Sequence[Column], form: Form, *, name: str, wide: Sequence[Column] = ()
) -> None:
    """Rows in the form that was asked for; an empty table says so on stderr."""
    if form is Form.json:
        print(json.dumps(list(rows), indent=2))
    elif form is Form.yaml:
        print(yaml.safe_dump(list(rows), sort_keys=False), end="")
    elif form is Form.name:
        for row in rows:
            print(row[name])
    elif not rows:
        hint("none")
    else:
        print(table(rows, [*columns, *(wide if form is Form.wide else ())]))


def one(row: Json, form: Form, text: Callable[[Json], str], *, name: str) -> None:
    """One thing in the form that was asked for."""
    if form is Form.json:
        print(json.dumps(row, indent=2))
    elif form is Form.yaml:
        print(yaml.safe_dump(row, sort_keys=False), end="")
    elif form is Form.name:
        print(row[name])
    else:
        print(text(row))


def table(rows: Sequence[Json], columns: Sequence[Column]) -> str:
    """Left-aligned columns under their heads; what is not known is a dash."""
    cells = [[head.upper() for head, _ in columns]]
    cells += [[_word(value(row)) for _, value in columns] for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _word(value: object) -> str:
    if value is None or value == "":
        return "–"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "".join(character if character.isprintable() else "?" for character in text)


def length(seconds: float | None) -> str:
    """1.8 s, 14 s, 2 m 52 s, 3 h 05 m, 2 d 4 h; a dash for what is not known."""
    return "–" if seconds is None else duration(seconds)


def dashboard(client: Client) -> str:
    """The pages' address: TRIMTAB_DASHBOARD_URL, or where the server says they are; empty when nobody knows."""
    named = os.environ.get("TRIMTAB_DASHBOARD_URL", "").rstrip("/")
    if named:
        return named
    try:
        return client.dashboard()
    except (ApiError, Unreachable):
        return ""


def link(client: Client, path: str) -> None:
    """The page of what was just changed, on stderr, if there are pages."""
    base = dashboard(client)
    if base:
        hint(f"  {base}/{path}")
