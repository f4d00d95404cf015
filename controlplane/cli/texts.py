"""What `submit` reads: a file, standard input, a template or a preset, by one name; and how its problems are printed.

It judges nothing but the kind of the text, so that a job that is given to `lifecycle submit` is told so in one line;
what else is wrong with it the server says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from controlplane.cli.output import EXIT, Exit, hint
from controlplane.client import Client
from jobs.parsing import SUBMITTED, SpecError, kind_of

Kind = Literal["Job", "Lifecycle"]
_TEMPLATES: dict[Kind, str] = {"Job": "templates", "Lifecycle": "lifecycle-templates"}


def text_of(client: Client, named: str, kind: Kind) -> str:
    """The YAML of a file, of standard input (`-`), of a template or of a preset; Exit with a sentence when it is none
    of them, or is of another kind."""
    if not named.strip():
        raise usage("A YAML file, - for standard input, or a template's name is needed.")
    text = _read(named, kind)
    if text is not None:
        _refuse_another_kind(text, named, kind)
        return text
    ship = client.get(_TEMPLATES[kind])
    known = [one["name"] for one in ship["templates"]]
    presets = [one["name"] for one in ship.get("presets", ())]
    if named not in (*known, *presets):
        there = ", ".join(known) or "none"
        more = f"; and presets, jobs for other trainers: {', '.join(presets)}" if presets else ""
        raise usage(f"There is no file {named}, and no template of this name; there are {there}{more}.")
    return str(client.get(f"{_TEMPLATES[kind]}/{named}")["yaml"])


def _read(named: str, kind: Kind) -> str | None:
    """None where there is no such file."""
    path = Path(named)
    try:
        if named == "-":
            return sys.stdin.buffer.read().decode()
        return path.read_bytes().decode() if path.exists() else None
    except UnicodeDecodeError as error:
        which = "standard input" if named == "-" else named
        raise usage(f"{which} is no text: a {kind.lower()} is YAML in UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise usage(f"{named} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _refuse_another_kind(text: str, named: str, kind: Kind) -> None:
    try:
        found = kind_of(text)
    except SpecError:
        return  # the server says what is wrong with it
    if found != kind and found in SUBMITTED:
        raise usage(f"{'Standard input' if named == '-' else named} is a {found}: {SUBMITTED[found]} {named}")


def usage(sentence: str) -> Exit:
    """Says what was asked for wrongly."""
    hint(sentence)
    return Exit(EXIT.USAGE)


def problem_lines(problems: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each problem of a text; one of the whole text has no path."""
    return ["error  " + ": ".join(filter(None, (one["path"], one["message"]))) for one in problems]
