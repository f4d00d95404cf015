"""A lifecycle as data: stages with what each depends on and starts from, its jobs, its budgets and its gate.

Validated whole before anything runs: parse_lifecycle raises SpecError with every problem and its path. What `defaults`
holds is laid under each job key by key and is gone afterwards, so that a plan says everything where it is used. It
executes nothing (controlplane.runs.lifecycle decides) and judges no metric; what a plan may not say stands in
jobs.lifecycle_checks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from jobs.lifecycle_checks import checked
from jobs.lifecycle_requirements import Requirement
from jobs.lifecycle_text import of_defaults, resolved, told_where_written
from jobs.parsing import Part, Problem, SpecError, parse, read_yaml
from jobs.spec import RAY_NAME, TEMPLATES, JobBody, JobSpec, Metadata, Name, shipped

__all__ = ["Requirement"]

LONGEST_NAME = 40
Role = Literal["prepare", "train", "evaluate", "release"]
Alias = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?)?$")]


class Prepare(Part):
    """A job that runs before the stage's own and writes files for it (TRIMTAB_PREPARED_DIR)."""

    name: Name
    job: JobBody


class Budget(Part):
    """What a stage may use without a person: new runs after a failed one, and GPU-hours over all of its runs."""

    retries: int = Field(default=1, ge=0, le=100)
    gpu_hours: float | None = Field(default=None, gt=0, alias="gpuHours")


class Gate(Part):
    """What must hold before a stage passes: requirements on an evaluation's metrics, a person's approval, or both."""

    evaluation: JobBody | None = None
    require: list[str] = Field(default_factory=list, max_length=64)
    approval: bool = False


class Stage(Part):
    """A step of the plan. `source`: the stage whose passed checkpoint it starts from; "" starts afresh.

    `role` train makes a checkpoint; evaluate and release look at the one of their source and pass it on.
    """

    name: Name
    role: Literal["train", "evaluate", "release"] = "train"
    after: list[Name] = Field(default_factory=list)
    source: Alias = Field(default="", alias="from")
    prepare: list[Prepare] = Field(default_factory=list, max_length=16)
    job: JobBody
    budget: Budget = Field(default_factory=Budget)
    gate: Gate | None = None
    promote: Alias = ""

    def works(self) -> Iterator[tuple[Role, str, JobBody]]:
        """(role, item, job) of all that the stage runs, in order; `item` names a preparing job."""
        for one in self.prepare:
            yield "prepare", one.name, one.job
        yield self.role, "", self.job
        if self.gate is not None and self.gate.evaluation is not None:
            yield "evaluate", "", self.gate.evaluation

    @property
    def requirements(self) -> tuple[str, ...]:
        """What its gate requires of metrics."""
        return tuple(self.gate.require) if self.gate is not None else ()

    @property
    def wants_approval(self) -> bool:
        return self.gate is not None and self.gate.approval


class LifecycleBody(Part):
    """The part under `spec`."""

    stages: Annotated[list[Stage], Field(min_length=1, max_length=64)]


class Lifecycle(Part):
    """A named plan of stages."""

    api_version: Literal["trimtab/v1"] = Field(default="trimtab/v1", alias="apiVersion")
    kind: Literal["Lifecycle"] = "Lifecycle"
    metadata: Metadata
    spec: LifecycleBody

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages' names, in order."""
        return tuple(stage.name for stage in self.spec.stages)

    def stage(self, name: str) -> Stage:
        """A stage by its name; LookupError if there is none."""
        for one in self.spec.stages:
            if one.name == name:
                return one
        raise LookupError(f"{self.name} has no stage {name}; it has {', '.join(self.stages)}")

    def upstream(self, name: str) -> frozenset[str]:
        """All stages that must pass before a stage begins, near and far."""
        found: set[str] = set()
        new = list(self.stage(name).after)
        while new:
            one = new.pop()
            if one not in found:
                found.add(one)
                new += self.stage(one).after
        return frozenset(found)

    def downstream(self, name: str) -> frozenset[str]:
        """All stages that wait for a stage, near and far."""
        return frozenset(one for one in self.stages if name in self.upstream(one))

    def job(self, stage: str, role: str, item: str = "") -> JobSpec:
        """The job of a stage's run, under its run's name; LookupError if the stage has none of that role."""
        found = self.stage(stage)
        for its_role, its_item, body in found.works():
            if (its_role, its_item) == (role, item):
                suffix = item or ("" if role == found.role else role)
                longest = RAY_NAME if body.kubernetes.ray else LONGEST_NAME
                name = run_name(self.name, stage, suffix, longest=longest)
                return JobSpec(metadata=Metadata(name=name, labels=self.metadata.labels), spec=body)
        raise LookupError(f"stage {stage} of {self.name} has no job of the role {role} {item}".rstrip())

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, in the names of the YAML form."""
        return self.model_dump(by_alias=True, mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, width=100)

    def hash(self) -> str:
        """SHA-256 of the canonical JSON form: equal plans have equal hashes."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def of_job(cls, job: JobSpec) -> Lifecycle:
        """The plan that a job submitted by itself makes: its one stage."""
        stage = Stage(name=job.spec.stage, job=job.spec)
        return cls(metadata=job.metadata, spec=LifecycleBody(stages=[stage]))


def run_name(lifecycle: str, stage: str, suffix: str = "", *, longest: int = LONGEST_NAME) -> str:
    """What the runs of a stage are called: cut to what names allow, and then told apart by four digits of a hash."""
    whole = "-".join(filter(None, (lifecycle, stage, suffix)))
    if len(whole) <= longest:
        return whole
    mark = hashlib.sha256(whole.encode()).hexdigest()[:4]
    return f"{whole[: longest - 5].rstrip('-')}-{mark}"


# --- reading ---


def parse_lifecycle(source: Mapping[str, Any] | str) -> Lifecycle:
    """A validated Lifecycle from a mapping or a YAML text; raises SpecError with every problem at once.

    A problem within a stage's job has the whole path: `stages.0.job.resources.nodes`, or `defaults.resources.nodes`
    where it was written there.
    """
    given = read_yaml(source) if isinstance(source, str) else dict(source)
    if not isinstance(given, dict):
        raise SpecError([Problem("", "a lifecycle is a mapping with apiVersion, kind, metadata and spec")])
    try:
        return parse(Lifecycle, resolved(given), "lifecycle", lambda found: of_defaults(given) + checked(found))
    except SpecError as error:
        raise SpecError(told_where_written(given, error.problems)) from error


def lifecycle_templates() -> list[str]:
    """The names of the lifecycles that ship."""
    return shipped("Lifecycle")


def lifecycle_text(name: str) -> str:
    """The YAML of a lifecycle that ships, as it was written; SpecError naming those that exist."""
    if name not in lifecycle_templates():
        known = ", ".join(lifecycle_templates()) or "none"
        raise SpecError([Problem("template", f"{name!r} does not exist; there are {known}")])
    return (TEMPLATES / f"{name}.yaml").read_text()


def load_lifecycle(name: str) -> Lifecycle:
    """A lifecycle that ships, by name; raises SpecError naming those that exist."""
    return parse_lifecycle(lifecycle_text(name))
