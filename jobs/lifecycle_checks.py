"""What a lifecycle may not say although each of its parts is well formed: order, sources, names, gates, metrics.

Works on the plan as plain data, also where parts of it are malformed, so that one answer holds every problem. It knows
what a job may say (jobs.spec) and nothing of how a plan is executed; what a stage of the reference workload needs of
those before it stands in jobs.lifecycle_workloads.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.lifecycle_requirements import Requirement
from jobs.lifecycle_workloads import beginnings, metrics_of
from jobs.parsing import Problem, SpecError
from jobs.spec import of_workload

Map = Mapping[str, Any]
RESERVED = ("train", "evaluate", "release")


def checked(found: Map) -> list[Problem]:
    """Every problem of a resolved plan that its parts alone do not show."""
    body = found.get("spec")
    given = body.get("stages") if isinstance(body, dict) else None
    stages = [(at, one) for at, one in enumerate(given if isinstance(given, list) else []) if isinstance(one, dict)]
    problems = [*_names(stages), *_order([one for _, one in stages], stages)]
    for at, stage in stages:
        problems += _jobs(at, stage)
        problems += _prepares(at, stage)
        problems += _gate(at, stage)
    problems += beginnings(stages)
    return problems + _ray(found, stages)


def _names(stages: Sequence[tuple[int, Map]]) -> Iterator[Problem]:
    seen: set[str] = set()
    for at, stage in stages:
        name = stage.get("name")
        if isinstance(name, str) and name in seen:
            yield Problem(f"stages.{at}.name", f"{name} is the name of an earlier stage as well")
        if isinstance(name, str):
            seen.add(name)


def _after(stage: Map) -> list[str]:
    after = stage.get("after")
    return [one for one in after if isinstance(one, str)] if isinstance(after, list) else []


def _order(plain: Sequence[Map], stages: Sequence[tuple[int, Map]]) -> Iterator[Problem]:
    """`after` and `from`: stages that exist, no circle, a source that has passed by then."""
    names = [str(stage.get("name")) for stage in plain]
    after = {str(stage.get("name")): _after(stage) for stage in plain}
    circle = _circle(after) if len(set(names)) == len(names) else []
    for at, stage in stages:
        path, name, source = f"stages.{at}", str(stage.get("name")), stage.get("from")
        listed = _after(stage)
        for one, times in Counter(listed).items():
            if one not in names:
                yield Problem(f"{path}.after", f"there is no stage {one}{_near(one, names)}")
            elif times > 1:
                yield Problem(f"{path}.after", f"{one} is named twice")
        if name in circle:
            words = " → ".join([*circle[circle.index(name) :], *circle[: circle.index(name) + 1]])
            yield Problem(f"{path}.after", f"no stage of a circle can begin: {words}")
        if source is None and "from" not in stage and len(listed) > 1:
            yield Problem(f"{path}.from", f'say whose checkpoint it starts from: {", ".join(listed)} or "" for none')
        yield from _source(path, stage, source, names, after)


def _source(
    path: str, stage: Map, source: object, names: Sequence[str], after: Mapping[str, list[str]]
) -> list[Problem]:
    if not isinstance(source, str):
        return []
    if not source:
        role = stage.get("role")
        made = role in ("evaluate", "release")
        return [Problem(f"{path}.from", f"a stage of the role {role} needs the checkpoint of a stage")] if made else []
    if source not in names:
        return [Problem(f"{path}.from", f"there is no stage {source}{_near(source, names)}")]
    if source not in _upstream(str(stage.get("name")), after):
        words = f"{source} need not have passed by then: name it, or a stage that waits for it, in after"
        return [Problem(f"{path}.from", words)]
    return []


def _upstream(name: str, after: Mapping[str, list[str]]) -> set[str]:
    found: set[str] = set()
    new = list(after.get(name, ()))
    while new:
        one = new.pop()
        if one not in found:
            found.add(one)
            new += after.get(one, ())
    return found


def _circle(after: Mapping[str, list[str]]) -> list[str]:
    """The stages of one circle in order, each waiting for the next; empty if there is none."""
    for begin in after:
        if begin not in _upstream(begin, after):
            continue
        way, here = [begin], begin
        while True:
            here = next(one for one in after[here] if one == begin or begin in _upstream(one, after))
            if here in way:
                return way[way.index(here) :]
            way.append(here)
    return []


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _bodies(at: int, stage: Map) -> Iterator[tuple[str, Map]]:
    """Path and job of all that a stage runs."""
    if isinstance(stage.get("job"), dict):
        yield f"stages.{at}.job", stage["job"]
    prepare, gate = stage.get("prepare"), stage.get("gate")
    for number, one in enumerate(prepare if isinstance(prepare, list) else []):
        if isinstance(one, dict) and isinstance(one.get("job"), dict):
            yield f"stages.{at}.prepare.{number}.job", one["job"]
    if isinstance(gate, dict) and isinstance(gate.get("evaluation"), dict):
        yield f"stages.{at}.gate.evaluation", gate["evaluation"]


def _jobs(at: int, stage: Map) -> Iterator[Problem]:
    for path, body in _bodies(at, stage):
        for one in of_workload({"spec": body}):
            yield Problem(f"{path}.{one.path}", one.message)
        named, name = body.get("stage"), stage.get("name")
        if isinstance(name, str) and isinstance(named, str) and named != name:
            yield Problem(f"{path}.stage", f"is the stage's own name, {name}, and need not be given")


def _prepares(at: int, stage: Map) -> Iterator[Problem]:
    prepare, seen = stage.get("prepare"), set[str]()
    for number, one in enumerate(prepare if isinstance(prepare, list) else []):
        name = one.get("name") if isinstance(one, dict) else None
        if not isinstance(name, str):
            continue
        if name in seen or name in RESERVED:
            why = "is the name of an earlier one as well" if name in seen else "is a role's name; choose another"
            yield Problem(f"stages.{at}.prepare.{number}.name", f"{name} {why}")
        seen.add(name)


# --- gates ---


def _gate(at: int, stage: Map) -> Iterator[Problem]:
    gate, path = stage.get("gate"), f"stages.{at}.gate"
    if not isinstance(gate, dict):
        return
    require, evaluation, role = gate.get("require") or [], gate.get("evaluation"), stage.get("role")
    if not require and not gate.get("approval"):
        yield Problem(path, "judges nothing: give require, approval or both, or leave the gate out")
    if evaluation is not None and role in ("evaluate", "release"):
        yield Problem(f"{path}.evaluation", f"a stage of the role {role} is judged by its own job's result")
    if evaluation is None and require and role == "train":
        yield Problem(f"{path}.evaluation", "is needed: require judges the metrics of an evaluation")
    judged = evaluation if isinstance(evaluation, dict) else stage.get("job") if role != "train" else None
    for number, text in enumerate(require if isinstance(require, list) else []):
        if isinstance(text, str):
            yield from _requirement(f"{path}.require.{number}", text, metrics_of(judged))


def _requirement(path: str, text: str, known: frozenset[str] | None) -> Iterator[Problem]:
    try:
        asked = Requirement.parse(text)
    except SpecError as error:
        yield from (Problem(path, one.message) for one in error.problems)
        return
    if isinstance(asked.bound, float) and not abs(asked.bound) < float("inf"):
        yield Problem(path, f"must compare with a finite number, not {asked.bound}")
    for metric in (asked.metric, asked.bound):
        if isinstance(metric, str) and known is not None and metric.rsplit("/", 1)[-1] not in known:
            names = ", ".join(sorted(known))
            yield Problem(
                path, f"the evaluation gives no metric {metric}{_near(metric, sorted(known))}; it gives {names}"
            )


def _ray(found: Map, stages: Sequence[tuple[int, Map]]) -> list[Problem]:
    """On Ray the names of runs, which begin with the lifecycle's, must begin with a letter."""
    head = found.get("metadata")
    name = head.get("name") if isinstance(head, dict) else None
    asked = [
        body["kubernetes"].get("ray") is True
        for at, stage in stages
        for _, body in _bodies(at, stage)
        if isinstance(body.get("kubernetes"), dict)
    ]
    wrong = isinstance(name, str) and any(asked) and not name[:1].isalpha()
    return [Problem("metadata.name", "must begin with a letter: a job of it runs on Ray")] if wrong else []
