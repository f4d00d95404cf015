"""A lifecycle as a person writes it, made whole: defaults laid under each job, stages named in their jobs, the order
and the source of each stage where the text leaves them out. Plain mappings; what is malformed stays for the validation.

It validates nothing; `told_where_written` leads a problem of a merged job back to the line that a person can mend.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.parsing import Problem
from jobs.workloads import EVALUATE, RELEASE, module_of

ROLES = {RELEASE: "release", EVALUATE: "evaluate"}
"""By the module that a stage's command runs: its role where the text names none; train otherwise."""
Map = dict[str, Any]


def resolved(given: Mapping[str, Any]) -> Map:
    """The plan without `defaults`, each stage with its role, `after` and `from`."""
    body = given.get("spec")
    if not isinstance(body, dict):
        return dict(given)
    defaults, stages = body.get("defaults"), body.get("stages")
    rest = {name: value for name, value in body.items() if name != "defaults"}
    if not isinstance(stages, list):
        return {**given, "spec": rest}
    defaults = defaults if isinstance(defaults, dict) else {}
    whole: list[Any] = []
    for stage in stages:
        before = whole[-1].get("name") if whole and isinstance(whole[-1], dict) else None
        whole.append(_stage(stage, defaults, before) if isinstance(stage, dict) else stage)
    return {**given, "spec": {**rest, "stages": whole}}


def of_defaults(given: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with `defaults` themselves, which no plan holds any more once it is made whole."""
    body = given.get("spec")
    wrong = isinstance(body, dict) and not isinstance(body.get("defaults", {}), dict)
    return [Problem("defaults", "must be a mapping")] if wrong else []


def _stage(given: Map, defaults: Map, before: object) -> Map:
    stage = dict(given)
    name = stage.get("name")
    if "after" not in stage:
        stage["after"] = [before] if isinstance(before, str) else []
    after = stage["after"]
    if "from" not in stage and isinstance(after, list) and len(after) <= 1:
        stage["from"] = after[0] if after else ""
    for place, key, job in _jobs(stage):
        place[key] = _merged(defaults, {"stage": name if isinstance(name, str) else "stage", **job})
    if "role" not in stage:
        stage["role"] = role_of(stage.get("job"))
    return stage


def role_of(job: object) -> str:
    """The role of a stage by its job's command."""
    return ROLES.get(module_of(job), "train")


def _jobs(stage: Map) -> Iterator[tuple[Map, str, Map]]:
    """The jobs of a stage, each with the mapping and the key that hold it; the mappings are copies, made on the way."""
    if isinstance(stage.get("job"), dict):
        yield stage, "job", stage["job"]
    if isinstance(stage.get("prepare"), list):
        stage["prepare"] = [dict(one) if isinstance(one, dict) else one for one in stage["prepare"]]
        for one in stage["prepare"]:
            if isinstance(one, dict) and isinstance(one.get("job"), dict):
                yield one, "job", one["job"]
    if isinstance(stage.get("gate"), dict):
        stage["gate"] = dict(stage["gate"])
        if isinstance(stage["gate"].get("evaluation"), dict):
            yield stage["gate"], "evaluation", stage["gate"]["evaluation"]


def _merged(under: Map, over: Map) -> Map:
    """`over` laid on `under`, key by key and map by map."""
    found = dict(under)
    for name, value in over.items():
        below = found.get(name)
        found[name] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return found


def told_where_written(given: Mapping[str, Any], problems: Sequence[Problem]) -> list[Problem]:
    """Each problem once, under the path where a person wrote what is wrong."""
    body = given.get("spec")
    defaults = body.get("defaults") if isinstance(body, dict) else None
    if not isinstance(defaults, dict):
        return list(dict.fromkeys(problems))
    return list(dict.fromkeys(_where_written(body, defaults, one) for one in problems))


def _where_written(body: object, defaults: Map, problem: Problem) -> Problem:
    words = problem.path.split(".")
    at = next((end for end in (3, 5, 4) if words[end - 1 : end] in (["job"], ["evaluation"])), None)
    if words[0] != "stages" or at is None:
        return problem
    rest = words[at:]
    if not rest or _there(body, words) or not _there(defaults, rest):
        return problem
    return Problem(".".join(["defaults", *rest]), problem.message)


def _there(value: object, words: Sequence[str]) -> bool:
    for word in words:
        if isinstance(value, list) and word.isdecimal() and int(word) < len(value):
            value = value[int(word)]
        elif isinstance(value, dict) and word in value:
            value = value[word]
        else:
            return False
    return True
