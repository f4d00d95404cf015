"""What a person asks for: a Job (one stage) and a Lifecycle, validated whole. No torch, no cluster, no defaults hidden.

A mapping or a YAML text becomes a frozen JobSpec, or a SpecError that lists every problem with its path, so that a form
can show each one beside its field. Paths are relative to `spec`; those of the head start with `metadata`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from jobs.zaya import config as zaya

API_VERSION = "trimtab/v1"
WORKLOADS: Mapping[str, Callable[[Mapping[str, Mapping[str, Any]]], list[tuple[str, str]]]] = {
    "jobs.zaya.train": zaya.problems
}
"""By the module that a command runs: what its trainer would refuse of the maps train, router and data."""
TEMPLATES = Path(__file__).parent / "lifecycles"
MAX_TEXT = 256 * 1024
RAY_NAME = 35
"""characters of a name on Ray: KubeRay adds its own to a run's and an attempt's, and 63 is all that a name may have"""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where, in plain words."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class SpecError(ValueError):
    """A spec that cannot be accepted; `problems` holds all that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, strict=True)


class Metadata(_Part):
    """The job's name (lower case, digits, hyphens, at most 40 characters) and free labels."""

    name: Name
    labels: dict[str, str] = Field(default_factory=dict)


class Resources(_Part):
    """Whole nodes; `ranks_per_node` processes are started on each."""

    nodes: int = Field(ge=1, le=1024)
    gpus_per_node: int = Field(default=8, ge=0, le=8, alias="gpusPerNode")
    ranks_per_node: int = Field(default=1, ge=1, le=8, alias="ranksPerNode")


class Train(_Part):
    """Length and shape of the training; further keys are handed to the job as they are (TRIMTAB_TRAIN_JSON)."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, strict=True)
    steps: int = Field(ge=1, le=100_000_000)
    checkpoint_every: int = Field(default=100, ge=1, alias="checkpointEvery")
    seed: int = Field(default=0, ge=0)
    sequences: int = Field(default=16, ge=1)
    length: int = Field(default=128, ge=2)


class FaultPolicy(_Part):
    """What may happen without a person: the mode, the restart budget, the time to save in."""

    mode: Literal["observe", "advise", "act"] = "act"
    restarts: int = Field(default=8, ge=0, le=1000)
    grace_seconds: float = Field(default=30.0, ge=0, le=3600, alias="graceSeconds")
    exclude_ttl_hours: float = Field(default=24.0, gt=0, alias="excludeTtlHours")


class Placing(_Part):
    """What the job asks of Kubernetes; empty: what the installation has set."""

    image: str = ""
    queue: str = ""
    priority_class: str = Field(default="", alias="priorityClass")
    ray: bool = False
    """The command is a Ray program: KubeRay brings up a Ray cluster on the nodes and runs it on the first."""


class JobBody(_Part):
    """The part under `spec`."""

    stage: Name
    command: Annotated[list[str], Field(min_length=1)]
    resources: Resources
    train: Train
    router: dict[str, Scalar] = Field(default_factory=dict)
    data: dict[str, Scalar] = Field(default_factory=dict)
    faults: FaultPolicy = Field(default_factory=FaultPolicy)
    contract_level: int = Field(default=2, ge=0, le=2, alias="contractLevel")
    kubernetes: Placing = Field(default_factory=Placing)


class JobSpec(_Part):
    """One job: a command on whole nodes, its training, and what may happen to it."""

    api_version: Literal["trimtab/v1"] = Field(default="trimtab/v1", alias="apiVersion")
    kind: Literal["Job"] = "Job"
    metadata: Metadata
    spec: JobBody

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.spec.resources.nodes * self.spec.resources.gpus_per_node

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain data, in the names of the YAML form."""
        return self.model_dump(by_alias=True, mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, width=100)

    def hash(self) -> str:
        """SHA-256 of the canonical JSON form: equal specs have equal hashes."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


class Stage(_Part):
    """A stage of a lifecycle: a job under the job's own stage name."""

    name: Name
    job: JobSpec

    @model_validator(mode="after")
    def _named_alike(self) -> Stage:
        if self.name != self.job.spec.stage:
            raise ValueError(f"the stage is named {self.name}, its job's stage {self.job.spec.stage}")
        return self


class LifecycleBody(_Part):
    """The part under `spec`. One stage without gates is all that is known yet."""

    stages: Annotated[list[Stage], Field(min_length=1, max_length=1)]


class Lifecycle(_Part):
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

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, in the names of the YAML form."""
        return self.model_dump(by_alias=True, mode="json")

    @classmethod
    def of_job(cls, job: JobSpec) -> Lifecycle:
        """The plan that a job submitted by itself makes: its one stage."""
        stage = Stage(name=job.spec.stage, job=job)
        return cls(metadata=job.metadata, spec=LifecycleBody(stages=[stage]))


_Spec = TypeVar("_Spec", JobSpec, Lifecycle)


class _OnceLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where plain YAML lets the last one win, and aliases, whose few lines can
    stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias: Any = self.peek_event()  # type: ignore[no-untyped-call] # the stubs leave it untyped
            raise yaml.constructor.ConstructorError(None, None, "aliases are not read here", alias.start_mark)
        return super().compose_node(parent, index)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, str) and key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        if isinstance(key, str):
            seen.add(key)
    return loader.construct_mapping(node, deep=True)


_OnceLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _read_yaml(text: str) -> Any:
    if len(text) > MAX_TEXT:
        raise SpecError([Problem("", f"the text has {len(text)} characters, {MAX_TEXT} are read at most")])
    try:
        return yaml.load(text, _OnceLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError([Problem("", f"{where}{getattr(error, 'problem', None) or error}")]) from error


def _words(error: Any, known: list[str]) -> str:
    """Pydantic's finding as a person would say it."""
    kind, context, given = error["type"], error.get("ctx", {}), error.get("input")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
        return "is not known here" + (f"; did you mean {near[0]}?" if near else "")
    simple = {
        "missing": "is needed",
        "greater_than_equal": f"must be ≥ {context.get('ge')}",
        "greater_than": f"must be > {context.get('gt')}",
        "less_than_equal": f"must be ≤ {context.get('le')}",
        "int_type": f"must be a whole number, not {given!r}",
        "int_from_float": f"must be a whole number, not {given!r}",
        "float_type": f"must be a number, not {given!r}",
        "finite_number": "must be a finite number",
        "bool_type": f"must be true or false, not {given!r}",
        "string_type": f"must be text, not {given!r}",
        "list_type": "must be a list",
        "dict_type": "must be a mapping",
        "model_type": "must be a mapping",
        "too_short": "must not be empty",
        "too_long": f"must have at most {context.get('max_length')}, not {context.get('actual_length')}",
        "value_error": str(context.get("error")),
        "string_pattern_mismatch": "must be 1 to 40 lower-case letters, digits or hyphens, without one at either end",
        "literal_error": f"must be one of {context.get('expected')}, not {given!r}",
    }
    return simple.get(kind, str(error["msg"]).lower())


def _known_names(model: Any, location: tuple[Any, ...]) -> list[str]:
    for part in location[:-1]:
        if isinstance(part, int):  # an item of a list
            model = next(iter(get_args(model)), None)
            continue
        fields = {(field.alias or name): field for name, field in getattr(model, "model_fields", {}).items()}
        model = fields[part].annotation if part in fields else None
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]


def _problem(model: type[_Part], error: Any) -> Problem:
    location = tuple(error["loc"])
    scalar = location[-1:] and location[-1] in ("int", "float", "str", "bool")
    names = location[:-1] if scalar else location
    path = ".".join(map(str, names[1:] if names[:1] == ("spec",) and len(names) > 1 else names))
    if scalar:
        return Problem(path, "must be text, a number, true or false")
    return Problem(path, _words(error, _known_names(model, location)))


def _parse(
    model: type[_Spec], source: Mapping[str, Any] | str, what: str, judge: Callable[[Mapping[str, Any]], list[Problem]]
) -> _Spec:
    """A validated spec; raises SpecError with every problem at once, those that only `judge` can see included."""
    given = _read_yaml(source) if isinstance(source, str) else dict(source)
    if not isinstance(given, dict):
        raise SpecError([Problem("", f"a {what} is a mapping with apiVersion, kind, metadata and spec")])
    problems: dict[str, Problem] = {}
    try:
        made = model.model_validate(given)
    except ValidationError as error:
        found = (_problem(model, one) for one in error.errors(include_url=False))
        problems = {str(problem): problem for problem in found}
    told = {problem.path for problem in problems.values()}
    unseen: list[Problem] = [one for one in judge(given) if one.path not in told]
    if problems or unseen:
        raise SpecError([*problems.values(), *unseen])
    return made


def _of_workload(found: Mapping[str, Any]) -> list[Problem]:
    """What the command's own trainer would refuse of its maps; nothing is known of a command that is not ours."""
    body = found.get("spec")
    command = body.get("command") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(command, list):
        return []
    maps = {name: body[name] for name in ("train", "router", "data") if isinstance(body.get(name), dict)}
    judges = [WORKLOADS[word] for word in command if isinstance(word, str) and word in WORKLOADS]
    return [Problem(path, message) for judge in judges for path, message in judge(maps)]


def _of_ray(found: Mapping[str, Any]) -> list[Problem]:
    """What KubeRay would refuse of an attempt's name only after the job has waited in the queue."""
    head, body = found.get("metadata"), found.get("spec")
    asked = isinstance(body, dict) and isinstance(body.get("kubernetes"), dict) and body["kubernetes"].get("ray")
    name = head.get("name") if isinstance(head, dict) else None
    if asked is not True or not isinstance(name, str):
        return []
    if len(name) > RAY_NAME:
        return [Problem("metadata.name", f"must have at most {RAY_NAME} characters on Ray, not {len(name)}")]
    begins = name[:1].isalpha()
    return [] if begins else [Problem("metadata.name", "must begin with a letter on Ray")]


def _of_job(found: Mapping[str, Any]) -> list[Problem]:
    return _of_workload(found) + _of_ray(found)


def _of_stages(found: Mapping[str, Any]) -> list[Problem]:
    """What the trainers of a lifecycle's stages would refuse, with the whole path."""
    body = found.get("spec")
    stages = body.get("stages") if isinstance(body, dict) else None
    jobs = [
        (index, stage["job"])
        for index, stage in enumerate(stages if isinstance(stages, list) else [])
        if isinstance(stage, dict) and isinstance(stage.get("job"), dict)
    ]
    return [
        Problem(f"stages.{index}.job.{'' if one.path.startswith('metadata') else 'spec.'}{one.path}", one.message)
        for index, job in jobs
        for one in _of_job(job)
    ]


def parse_job(source: Mapping[str, Any] | str) -> JobSpec:
    """A validated JobSpec from a mapping or a YAML text; raises SpecError with every problem at once.

    The maps of a workload that ships are held to what its trainer takes, so that it is not refused on the nodes.
    """
    return _parse(JobSpec, source, "job", _of_job)


def parse_lifecycle(source: Mapping[str, Any] | str) -> Lifecycle:
    """A validated Lifecycle from a mapping or a YAML text; raises SpecError with every problem at once.

    A problem within a stage's job has the whole path: `stages.0.job.spec.resources.nodes`.
    """
    return _parse(Lifecycle, source, "lifecycle", _of_stages)


def templates() -> list[str]:
    """The names of the jobs that ship."""
    return sorted(path.stem for path in TEMPLATES.glob("*.yaml"))


def load_template(name: str) -> JobSpec:
    """A job that ships, by name; raises SpecError naming those that exist."""
    if name not in templates():
        raise SpecError([Problem("template", f"{name!r} does not exist; there are {', '.join(templates())}")])
    return parse_job((TEMPLATES / f"{name}.yaml").read_text())
