"""What would happen if this spec were submitted now: its problems, checks with sentences, candidate nodes, the cost.

The same judgement that placement makes, made early, and that of the platform, which is shown the objects that it would
be sent. What is not known (the time of a step that was never run) is said as unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from controlplane.backends.base import Backend
from controlplane.runs import plan
from controlplane.services import advising, foreseen, observe, plans
from controlplane.services import runs as run_service
from controlplane.services.durations import duration
from controlplane.services.foreseen import line
from controlplane.services.plans import Places
from controlplane.store import incidents, nodes, runs
from controlplane.store.engine import Session, Store
from jobs.spec import JobSpec, SpecError, parse_job

Json = dict[str, Any]


def check(
    store: Store,
    backend: Backend,
    places: Places,
    source: Mapping[str, Any] | str,
    now: float,
    *,
    ray: Backend | None = None,
    refusing: Collection[str] = (),
) -> Json:
    """The preflight of a spec. API: runs/validate. `ray`: where Ray programs would go, if anywhere; `refusing`: rules
    that keep new attempts off a node."""
    try:
        spec = parse_job(source)
        backend = run_service.on_what(spec, backend, ray)
    except SpecError as error:
        return _refused(error)
    with store.read() as session:
        rows = nodes.machines(session)
        waiting = runs.listed(session, ("queued",))
        seconds = _seconds(session, spec)
        afflicted = incidents.afflicted(session, refusing)
    free = observe.candidates(backend, rows, now, afflicted)
    barred = () if backend.pins_nodes else plan.barred(free or (), ())
    seen = backend.forecast(plans.first_plan(places, spec, barred))
    judged = [plan.fit(one, spec.spec.resources.gpus_per_node, ()) for one in free or ()]
    fits = foreseen.fits(judged, seen) if free is not None else []
    usable = sum(one.ok for one in fits)
    hours = spec.gpus * seconds / 3600 if seconds is not None else None
    return {
        "problems": [],
        "checks": [*_checks(spec, fits, free is not None), *(foreseen.checks(seen) if seen is not None else ())],
        "sentence": _sentence(spec, fits if free is not None else None, seconds, hours),
        "candidates": [{"node": one.node, "ok": one.ok, "reason": one.reason} for one in fits],
        "yaml": spec.to_yaml(),
        "gpu_hours": hours,
        "cluster": foreseen.view(backend.name, seen, fits) if seen is not None else None,
        "queue": {"ahead": len(waiting), "free_nodes": usable},
        "advice": advising.advice(spec, step_s=seconds / spec.spec.train.steps if seconds is not None else None),
    }


def _refused(error: SpecError) -> Json:
    """The answer to a spec that cannot be accepted."""
    problems = [{"path": one.path, "message": one.message} for one in error.problems]
    count = len(problems)
    return {
        "problems": problems,
        "checks": [],
        "sentence": f"{count} thing{'s' if count != 1 else ''} to mend before this can be submitted.",
        "candidates": [],
        "yaml": None,
        "gpu_hours": None,
        "queue": None,
        "advice": None,
        "cluster": None,
    }


def _seconds(session: Session, spec: JobSpec) -> float | None:
    """How long the steps would take, from earlier runs of the name; None when there was none."""
    earlier = runs.median_step_seconds(session, spec.name)
    done = sum(steps for _, steps in earlier)
    return sum(seconds for seconds, _ in earlier) / done * spec.spec.train.steps if done else None


def _sentence(spec: JobSpec, fits: Sequence[plan.Fit] | None, seconds: float | None, hours: float | None) -> str:
    wanted = spec.spec.resources.nodes
    count = _nodes(wanted)
    if fits is None:
        begin = f"{count} {_are(wanted)} asked for; whether they are free cannot be seen right now"
    elif sum(one.ok for one in fits) >= wanted:
        begin = f"{count} would start at once"
    else:
        begin = f"{count} would wait for {_lacking(wanted, fits)}"
    if seconds is None or hours is None:
        return f"{begin}; how long it runs is unknown: no run of this name has trained yet."
    return f"{begin}, run about {duration(seconds)}, and use {hours:.2f} GPU-hours."


def _lacking(wanted: int, fits: Sequence[plan.Fit]) -> str:
    """What must come: nodes that are there to be free, nodes that are not there to join."""
    absent = max(0, wanted - len(fits))
    taken = wanted - absent - sum(one.ok for one in fits)
    parts = [f"{taken} more to be free"] if taken else []
    parts += [f"{absent} more node{'s' if absent != 1 else ''} to join"] if absent else []
    return " and for ".join(parts)


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count != 1 else ''}"


def _are(count: int) -> str:
    return "are" if count != 1 else "is"


def _checks(spec: JobSpec, fits: Sequence[plan.Fit], known: bool) -> list[Json]:
    body = spec.spec
    wanted, usable = body.resources.nodes, sum(fit.ok for fit in fits)
    checks = []
    if not known:
        checks.append(line("warn", "nodes", "the backend cannot be asked for its nodes right now"))
    elif wanted > len(fits):
        exist = f"{len(fits) or 'none'} exist{'s' if len(fits) < 2 else ''}"
        checks.append(line("warn", "nodes", f"{_nodes(wanted)} {_are(wanted)} asked for, {exist}"))
    elif usable < wanted:
        short = f"{usable} of {wanted} nodes are free now, {wanted - usable} short"
        checks.append(line("warn", "nodes", f"{short}: {foreseen.grouped(fits)}"))
    else:
        checks.append(line("ok", "nodes", f"{usable} of {len(fits)} nodes can be used, {wanted} are needed"))
    spare = usable - wanted
    words = (
        f"{spare} node{'s' if spare != 1 else ''} left if one fails"
        if spare > 0
        else "none: after a node fault the run waits"
    )
    if known:
        checks.append(line("ok" if spare > 0 else "warn", "spares", words))
    every = body.train.checkpoint_every
    if every > body.train.steps:
        checks.append(line("warn", "checkpoints", f"one each {every} steps, but there are only {body.train.steps}"))
    else:
        checks.append(line("ok", "checkpoints", f"one each {every} steps, {body.train.steps // every} in all"))
    tokens = body.train.sequences * body.train.length * wanted * body.resources.ranks_per_node
    checks.append(line("ok", "batch", f"{tokens:,} tokens a step over {wanted * body.resources.ranks_per_node} ranks"))
    policy = {"act": "restarts by itself", "advise": "proposes a restart to a person", "observe": "only reports"}
    level = "ok" if body.faults.mode == "act" else "warn"
    checks.append(
        line(
            level,
            "faults",
            f"after a fault Trimtab {policy[body.faults.mode]}, {body.faults.restarts} restarts at most",
        )
    )
    return checks
