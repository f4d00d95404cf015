"""The job somebody is about to submit: a mapping, its fields by path, its YAML, its difference from a template.

Why it exists: the form and the YAML box edit the same mapping, so neither can lose what the other wrote. It judges
nothing: the server's checks are the only ones, and their paths are the paths used here.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from difflib import SequenceMatcher
from typing import Any

import yaml

Draft = dict[str, Any]


class DraftError(ValueError):
    """The text of the YAML box is not a job's mapping; the message says where."""


def full_path(path: str) -> tuple[str, ...]:
    """The keys of a path as the server writes it: `resources.nodes` stands under `spec`, `metadata.name` at the top."""
    keys = tuple(path.split("."))
    return keys if keys[0] in ("metadata", "apiVersion", "kind", "spec") else ("spec", *keys)


def get(draft: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a path, or `default` where any part of the path is missing."""
    value: Any = draft
    for key in full_path(path):
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value


def with_value(draft: Mapping[str, Any], path: str, value: Any) -> Draft:
    """A copy with one value replaced; the parts of the path that are missing are made."""
    changed: Draft = deepcopy(dict(draft))
    keys = full_path(path)
    inner = changed
    for key in keys[:-1]:
        if not isinstance(inner.get(key), dict):
            inner[key] = {}
        inner = inner[key]
    inner[keys[-1]] = value
    return changed


def to_yaml(draft: Mapping[str, Any]) -> str:
    """The draft as YAML in the order in which it was written."""
    text: str = yaml.safe_dump(dict(draft), sort_keys=False, allow_unicode=True, width=100, default_flow_style=False)
    return text


def from_yaml(text: str) -> Draft:
    """The mapping in a YAML text.

    Raises DraftError with the line and column when it is no YAML, or says what stands there instead of a mapping.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise DraftError(f"{place}{getattr(error, 'problem', None) or 'not YAML'}") from error
    if not isinstance(value, dict):
        raise DraftError(f"a job is a mapping, this is {'empty' if value is None else type(value).__name__}")
    if not isinstance(value.get("metadata", {}), dict) or not isinstance(value.get("spec", {}), dict):
        raise DraftError("metadata and spec must be mappings")
    return value


def diff(old: str, new: str) -> list[tuple[str, str]]:
    """All lines of `new` with those of `old` that differ: (sign, text) with sign " ", "-" or "+", cut before added."""
    before, after = old.splitlines(), new.splitlines()
    lines: list[tuple[str, str]] = []
    for tag, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            lines += [(" ", line) for line in after[c:d]]
        elif b - a == d - c:
            for cut, added in zip(before[a:b], after[c:d], strict=True):
                lines += [("-", cut), ("+", added)]
        else:
            lines += [("-", line) for line in before[a:b]] + [("+", line) for line in after[c:d]]
    return lines


def changed_values(lines: Sequence[tuple[str, str]]) -> int:
    """How many values differ: a line replaced counts once."""
    return max(sum(sign == "+" for sign, _ in lines), sum(sign == "-" for sign, _ in lines))


def problems_at(problems: Sequence[Mapping[str, Any]], *paths: str) -> list[str]:
    """The messages of the problems at these paths or below them."""
    wanted = [full_path(path) for path in paths]
    return [
        str(problem.get("message", ""))
        for problem in problems
        if any(full_path(str(problem.get("path", "")))[: len(path)] == path for path in wanted)
    ]


def as_command(draft: Mapping[str, Any]) -> str:
    """The same submission for a shell: the YAML on stdin, quoted so that no line of it is read by the shell."""
    end = "TRIMTAB"
    text = to_yaml(draft)
    while end in text:
        end += "_"
    return f"trimtab job submit - <<'{end}'\n{text}{end}\n"
