"""What a person asks for, one job: validated whole. No torch, no cluster, no defaults hidden.

A mapping or a YAML text becomes a frozen JobSpec, or a SpecError that lists every problem with its path, so that a form
can show each one beside its field. Paths are relative to `spec`; those of the head start with `metadata`. How text is
read stands in jobs.parsing, plans of several jobs in jobs.lifecycle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from jobs import commands, workloads
from jobs.layouts import registry as layouts
from jobs.manifest import ContractError
from jobs.meters import registry as meters
from jobs.parsing import Part, Problem, SpecError, kind_of, parse
from jobs.zaya import config as zaya
from jobs.zaya import evaluation_config as evaluation
from jobs.zaya.rl import config as rl

__all__ = ["Part", "Problem", "SpecError"]

API_VERSION = "trimtab/v1"
WORKLOADS: Mapping[str, Callable[[Mapping[str, Mapping[str, Any]]], list[tuple[str, str]]]] = {
    workloads.TRAIN: zaya.problems,
    workloads.RL: rl.problems,
    workloads.EVALUATE: evaluation.evaluate_problems,
    workloads.PREPARE: evaluation.prepare_problems,
    workloads.RELEASE: evaluation.release_problems,
}
"""By the module that a command runs: what its trainer would refuse of the maps train, router and data."""
TEMPLATES = Path(__file__).parent / "lifecycles"
PRESETS = Path(__file__).parent / "presets"
"""Jobs for trainers that are not ours, to be filled in: a command's paths and sizes are examples."""
RAY_NAME = 35
"""characters of a name on Ray: KubeRay adds its own to a run's and an attempt's, and 63 is all that a name may have"""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
Scalar = str | int | float | bool | None


class Metadata(Part):
    """The job's name (lower case, digits, hyphens, at most 40 characters) and free labels."""

    name: Name
    labels: dict[str, str] = Field(default_factory=dict)


class Resources(Part):
    """Whole nodes; `ranks_per_node` processes are started on each."""

    nodes: int = Field(ge=1, le=1024)
    gpus_per_node: int = Field(default=8, ge=0, le=8, alias="gpusPerNode")
    ranks_per_node: int = Field(default=1, ge=1, le=8, alias="ranksPerNode")


class Train(Part):
    """Length and shape of the training; further keys are handed to the job as they are (TRIMTAB_TRAIN_JSON)."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, strict=True)
    steps: int = Field(ge=1, le=100_000_000)
    checkpoint_every: int = Field(default=100, ge=1, alias="checkpointEvery")
    seed: int = Field(default=0, ge=0)
    sequences: int = Field(default=16, ge=1)
    length: int = Field(default=128, ge=2)


class FaultPolicy(Part):
    """What may happen without a person: the mode, the restart budget, the time to save in."""

    mode: Literal["observe", "advise", "act"] = "act"
    restarts: int = Field(default=8, ge=0, le=1000)
    grace_seconds: float = Field(default=30.0, ge=0, le=3600, alias="graceSeconds")
    exclude_ttl_hours: float = Field(default=24.0, gt=0, alias="excludeTtlHours")


class Placing(Part):
    """What the job asks of Kubernetes; empty: what the installation has set."""

    image: str = ""
    queue: str = ""
    priority_class: str = Field(default="", alias="priorityClass")
    ray: bool = False
    """The command is a Ray program: KubeRay brings up a Ray cluster on the nodes and runs it on the first."""


class Trainer(Part):
    """What a trainer that is not ours needs: its own variables, how its checkpoints lie, where it tells its steps.

    With a layout the places of jobs.commands are filled in, in `environment` and in the command.
    """

    layout: str = ""
    meter: str = ""
    environment: dict[str, str] = Field(default_factory=dict)

    @field_validator("layout", "meter")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        try:
            if value and info.field_name == "layout":
                layouts.find(value)
            elif value:
                meters.check(value)
        except ContractError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("environment")
    @classmethod
    def _theirs(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not commands.NAME.fullmatch(name) or "\0" in text:
                raise ValueError(f"{name!r} cannot be a variable")
            if commands.OURS.match(name):
                raise ValueError(f"{name} is set by the control plane")
        return value


class JobBody(Part):
    """The part under `spec`."""

    stage: Name
    command: Annotated[list[str], Field(min_length=1)]
    resources: Resources
    train: Train
    router: dict[str, Scalar] = Field(default_factory=dict)
    data: dict[str, Scalar] = Field(default_factory=dict)
    faults: FaultPolicy = Field(default_factory=FaultPolicy)
    contract_level: int = Field(default=2, ge=0, le=2, alias="contractLevel")
    trainer: Trainer = Field(default_factory=Trainer)
    kubernetes: Placing = Field(default_factory=Placing)


class JobSpec(Part):
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


def of_workload(found: Mapping[str, Any]) -> list[Problem]:
    """What the command's own trainer would refuse of its maps; nothing is known of a command that is not ours."""
    body = found.get("spec")
    command = body.get("command") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(command, list):
        return []
    maps = {name: body[name] for name in ("train", "router", "data") if isinstance(body.get(name), dict)}
    judges = [WORKLOADS[word] for word in command if isinstance(word, str) and word in WORKLOADS]
    refused = [Problem(path, message) for judge in judges for path, message in judge(maps)]
    return refused + _of_one_process(body)


def _of_one_process(body: Mapping[str, Any]) -> list[Problem]:
    """Nodes and ranks that would each start the whole work again, into the same directory."""
    alone = workloads.module_of(body)
    resources, placing = body.get("resources"), body.get("kubernetes")
    on_ray = isinstance(placing, dict) and placing.get("ray") is True
    if alone not in workloads.ALONE or not isinstance(resources, dict) or (alone == workloads.RL and on_ray):
        return []
    return [
        Problem(f"resources.{word}", f"{alone} is one process: must be 1 in its job, not {resources[word]}")
        for word in ("nodes", "ranksPerNode")
        if isinstance(resources.get(word), int) and resources[word] > 1
    ]


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


def _of_trainer(found: Mapping[str, Any]) -> list[Problem]:
    """A command that is to be resumed in its own words, without the layout that knows them."""
    body = found.get("spec")
    command = body.get("command") if isinstance(body, dict) else None
    trainer = body.get("trainer") if isinstance(body, dict) else None
    if not isinstance(command, list) or commands.RESUME not in command:
        return []
    if isinstance(trainer, dict) and trainer.get("layout"):
        return []
    return [Problem("trainer.layout", f"is needed: the command has {commands.RESUME}")]


def _of_job(found: Mapping[str, Any]) -> list[Problem]:
    return of_workload(found) + _of_ray(found) + _of_trainer(found)


def parse_job(source: Mapping[str, Any] | str) -> JobSpec:
    """A validated JobSpec from a mapping or a YAML text; raises SpecError with every problem at once.

    The maps of a workload that ships are held to what its trainer takes, so that it is not refused on the nodes.
    """
    return parse(JobSpec, source, "job", _of_job)


def templates() -> list[str]:
    """The names of the jobs that ship; the lifecycles that ship are jobs.lifecycle's."""
    return shipped("Job")


def shipped(kind: str) -> list[str]:
    """The names of the files of this kind in TEMPLATES."""
    return sorted(path.stem for path in TEMPLATES.glob("*.yaml") if kind_of(path.read_text()) == kind)


def load_template(name: str) -> JobSpec:
    """A job that ships, by name; raises SpecError naming those that exist."""
    if name not in templates():
        raise SpecError([Problem("template", f"{name!r} does not exist; there are {', '.join(templates())}")])
    return parse_job((TEMPLATES / f"{name}.yaml").read_text())


def presets() -> list[str]:
    """The names of the jobs for trainers that are not ours."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name: str) -> JobSpec:
    """A job for a trainer that is not ours, by the trainer's name; raises SpecError naming those that exist."""
    if name not in presets():
        raise SpecError([Problem("preset", f"{name!r} does not exist; there are {', '.join(presets())}")])
    return parse_job((PRESETS / f"{name}.yaml").read_text())
