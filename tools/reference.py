"""Writes the reference pages that are the code's own words: faults, metrics, settings, command line, API. `make docs`.

A test compares each page with what this would write, so that a rule, metric, setting or verb without its line is seen.
Prose stands in the other pages of docs/, by hand.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import typer
import typer.main

from agents.node.exporter import AgentCollector, AgentState
from agents.readings import METRICS as METRICS_OF
from agents.readings import NodeSample
from controlplane.api.app import routed
from controlplane.api.described import WHO
from controlplane.cli.main import app
from controlplane.cli.output import EXIT
from controlplane.metrics import ServerCollector, ServerState
from controlplane.rules import book
from controlplane.settings import HELP, PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
Json = dict[str, Any]

FAULTS = """\
# What is looked for

Rules that need one node run in its agent, also while the server is away (`agents/rules/faults.toml`); those that need
more than one node, or a job, run in the server (`controlplane/rules/rules.toml`). Both files are data. Actions:
**alert** tells a person; **drain** leaves the node at the next checkpoint; **restart** leaves it now. A fault that may
have corrupted data ends the ranks without saving, and taints what was saved since the last clean sample, with all that
went on from it; the latter where the policy does not act, too.
"""
METRICS = """\
# Metrics

Both endpoints build their families from memory when they are asked; a scrape touches neither hardware nor, but for the
counts by state, the database. What is not known has no sample. Per-expert numbers are on the pages, not here.

## Server: `GET /metrics`
"""
SETTINGS = """\
# Settings of the server

A flag of `trimtab serve` goes before an environment variable, that before `trimtab.toml` in the data folder, that
before the default. `trimtab config view --origin` says which one holds.
"""
CLI = """\
# Command line

`trimtab NOUN VERB`. Data goes to stdout, hints to stderr. The server is `TRIMTAB_URL`, the token `TRIMTAB_TOKEN`, or
the one that `trimtab serve` keeps in its data folder (`TRIMTAB_DATA`); `TRIMTAB_TLS_CA` names the authority that an
https server is checked by. `-o table|wide|json|yaml|name` where there is data. After a write the page's address
follows, as the server knows it, or under `TRIMTAB_DASHBOARD_URL`.

An incident is named by its number or its label (7, INC-0007), a run by its id or its name.
"""


API = """\
# The API

Everything that pages and the command line do goes through it: JSON under `/api/v1`, with `Authorization: Bearer tt_…`
(`trimtab token create`). `GET /api/v1/openapi.json` is the same as a document for programs. Answers are made for pages
and may grow; refusals are problem documents (RFC 9457) with a stable `code`, and a `hint` on what to do.

- **Once.** A POST that changes something takes an `Idempotency-Key` of yours. Its act, its line of the audit and its
  answer are one transaction: a repeat under the key gets the same answer, one that comes while the first is at work
  waits for it, and if the first came to nothing the repeat acts. Answers are kept for a day. What is shown once (a
  token) is not kept: its repeat is refused (`shown_once`). A channel's test message lies beyond any transaction: it is
  sent at most once, and a repeat that finds no answer is refused (`no_answer_yet`).
- **Pages of a list.** `next` of an answer is the `cursor` of the request for what follows; null is the end.
- **Frames** are binary and have an ETag: send it as `If-None-Match` and get 304 while nothing is new.
- **Without a token**: `GET /healthz` (the process answers), `GET /readyz` (the store answers and, on the leader, every
  loop had a good round lately), `GET /metrics` ([metrics.md](metrics.md)).

The roles are viewer, operator and admin; each may what the one before may. A batch is also refused under the codes of
`agents/wire.py`.
"""


def faults() -> Iterator[str]:
    """docs/faults.md: a heading a rule."""
    yield FAULTS
    for rule in book.listed(book.load()):
        yield f"## {rule['id']}\n"
        yield f"{rule['title']}. Runs in the {rule['runs_in']}; {rule['severity']}, {rule['action']}.\n"
        yield f"- fires: {rule['sentence']}"
        yield f"- window: {rule['window']}"
        if rule.get("worse"):
            yield f"- worse: {rule['worse']['severity']}, {rule['worse']['action']}"
        yield f"- its incident is over after {rule['hold_s']:.0f} s without it"
        yield f"- source: {rule['source']}\n"


def _families(collector: ServerCollector | AgentCollector) -> Iterator[str]:
    yield "| series | kind | labels | what it says |"
    yield "|---|---|---|---|"
    for family in collector.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ())) or "–"
        yield f"| `{name}` | {family.type} | {labels} | {family.documentation} |"
    yield ""


def metrics() -> Iterator[str]:
    """docs/metrics.md: a row a series."""
    yield METRICS
    yield from _families(ServerCollector(lambda: ServerState(leader=True)))
    yield "## Agent: `trimtab-agent --metrics-port P`\n"
    gpus, nics, host = ((tuple([0] * len(columns)),) for columns in METRICS_OF.values())
    sample = NodeSample(0.0, 0.0, gpus, nics, (), host)
    counts = {field.name: 0 for field in fields(AgentState) if field.default is MISSING}
    counts = {name: value for name, value in counts.items() if name != "quality"}
    state = AgentState(**{**counts, "node": "node", "simulated": True, "sample": sample, "faults": ()})
    yield from _families(AgentCollector(lambda: state))


def settings() -> Iterator[str]:
    """docs/settings.md: a heading a setting."""
    yield SETTINGS
    default = Settings()
    for name, words in HELP.items():
        yield f"## {name}\n"
        yield f"{words[0].upper()}{words[1:]}. Default {_value(getattr(default, name))}.\n"
        yield f"`--{name.replace('_', '-')}` · `{PREFIX}{name.upper()}` · `{name} = …`\n"


def cli() -> Iterator[str]:
    """docs/cli.md: a heading a verb."""
    yield CLI
    yield "Exit codes: " + ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in EXIT) + ".\n"
    root = typer.main.get_command(app)
    for path, command in sorted(_commands(root, "trimtab"), key=lambda one: one[0]):
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one not in arguments and not one.hidden and one.name != "help"]
        yield f"## {path}\n"
        yield f"{(command.help or '').strip()}\n"
        wanted = [f"{one.opts[-1]} …" for one in options if one.required]
        given = [one.name.upper() if one.required else f"[{one.name.upper()}]" for one in arguments]
        yield f"`{' '.join([path, *given, *wanted])}`\n"
        rows = [(one.name.upper(), one) for one in arguments] + [(_flag(one), one) for one in options]
        yield from (f"- `{name}` {' '.join((one.help or '').split())}{_default(one)}" for name, one in rows)
        yield ""


def _flag(option: Any) -> str:
    """An option's spellings: -o, --output; --dashboard / --no-dashboard."""
    return " / ".join(filter(None, (", ".join(option.opts), ", ".join(option.secondary_opts))))


def _default(option: Any) -> str:
    """What an option is if it is not given, where that is a value."""
    value = getattr(option.default, "value", option.default)
    plain = value is None or value is False or value == "" or callable(value)
    return "" if plain or option.required else f" (default {value})"


def _value(value: object) -> str:
    return "empty" if value == "" else f"`{value}`"


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from _commands(child, f"{path} {name}")


def api() -> Iterator[str]:
    """docs/api.md: a row a call, a table of each body's fields, a row a code."""
    yield API
    document = routed().openapi()
    for tag in ("runs", "lifecycles", "fleet", "people"):
        yield f"## {tag.capitalize()}\n"
        yield "| call | who | what | asked with |"
        yield "|---|---|---|---|"
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag in operation["tags"]:
                    yield _call(f"{method.upper()} {path.removeprefix('/api/v1')}", operation)
        yield ""
    yield "## Bodies\n"
    for name, schema in sorted(document["components"]["schemas"].items()):
        if name != "Problem":
            yield from _body(name, schema)
    yield "## Codes\n"
    yield "| code | status | when |"
    yield "|---|---|---|"
    for (code, status), titles in sorted(_codes().items()):
        yield f"| `{code}` | {status} | {'; '.join(sorted(titles))} |"


def _call(call: str, operation: Json) -> str:
    asked = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
    with_ = [", ".join(f"`{name}`" for name in asked)] if asked else []
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        named = [one["$ref"] for one in (content["schema"], *content["schema"].get("anyOf", ())) if "$ref" in one]
        name = named[0].rsplit("/", 1)[-1] if named else ""
        with_.append(f"[{name}](#{name.lower()})" if name else f"`{kind}`")
    if any(one["name"] == "Idempotency-Key" for one in operation.get("parameters", ())):
        with_.append("a key")
    return f"| `{call}` | {operation[WHO]} | {' '.join(operation['description'].split())} | {'; '.join(with_) or '–'} |"


def _body(name: str, schema: Json) -> Iterator[str]:
    yield f"### {name}\n"
    yield f"{schema['description']}\n"
    yield "| field | type | default |"
    yield "|---|---|---|"
    for field, rules in schema["properties"].items():
        default = f"`{json.dumps(rules['default'])}`" if "default" in rules else "none"
        default = "needed" if field in schema.get("required", ()) else default
        yield f"| `{field}` | {_type(rules)} | {default} |"
    yield ""


def _type(rules: Json) -> str:
    kinds = [_type(one) for one in rules.get("anyOf", ())] or [str(rules.get("type"))]
    if "enum" in rules:
        kinds = [", ".join(f"`{value}`" for value in rules["enum"])]
    signs = {"minimum": "≥ {}", "maximum": "≤ {}", "exclusiveMinimum": "> {}"}
    signs |= {"maxLength": "{} characters at most", "minLength": "{} character at least", "maxItems": "{} at most"}
    limits = [words.format(f"{rules[key]:g}") for key, words in signs.items() if key in rules]
    return ", ".join([" or ".join(kinds), *limits])


def _codes() -> dict[tuple[str, int], set[str]]:
    """Every refusal that stands in the API's own text: code and status, with the titles it has."""
    found: dict[tuple[str, int], set[str]] = {}
    for path in sorted((ROOT / "controlplane" / "api").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Problem" and len(node.args) > 2:
                status, code, title = node.args[:3]
                if isinstance(status, ast.Constant) and isinstance(code, ast.Constant):
                    found.setdefault((code.value, status.value), set()).add(_words(title))
    return found


def _words(title: ast.expr) -> str:
    """A title as text; what is only known at the time is left open."""
    if isinstance(title, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in title.values)
    return str(title.value) if isinstance(title, ast.Constant) else "in the words of the refusal"


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "faults.md": faults,
    "metrics.md": metrics,
    "settings.md": settings,
    "cli.md": cli,
    "api.md": api,
}


def page(name: str) -> str:
    """A page as it should be."""
    return "\n".join(PAGES[name]()).rstrip() + "\n"


def main() -> int:
    for name in PAGES:
        (ROOT / "docs" / name).write_text(page(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
