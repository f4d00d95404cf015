"""ZAYA1-8B's lifecycle on 1,024 GPUs, as far as arithmetic and shapes reach: nothing of it is run here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import ZayaConfig
from transformers import ZayaForCausalLM as TheirModel

from controlplane.backends.kube.forecast import pods_of
from controlplane.backends.kube.manifests import job as kube_job
from controlplane.backends.kube.options import GPU_RESOURCE, KubeOptions
from controlplane.backends.kube.rayjob_manifests import name_problem, rayjob
from controlplane.services.plans import Places, first_plan
from jobs.lifecycle import Lifecycle, Stage, load_lifecycle
from jobs.spec import TEMPLATES, JobBody, JobSpec, templates
from jobs.zaya.config import ModelConfig, read_config
from jobs.zaya.model.attention import Attention, positions
from jobs.zaya.model.cache import Cache, cache_bytes
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.sizes import GPU_BYTES, ZAYA1_8B, Layout, memory, parameters

NAME = "zaya1-8b-mi300x-1024"
PLAN = load_lifecycle(NAME)
RL = [stage for stage in PLAN.spec.stages if stage.name.startswith("rl-")]
TEXT = [stage for stage in PLAN.spec.stages if stage.role == "train" and stage not in RL]


def word(body: JobBody, name: str) -> int:
    """A number of the map `train`."""
    value = body.train.model_dump(by_alias=True)[name]
    assert isinstance(value, int)
    return value


def gpus(body: JobBody) -> int:
    return body.resources.nodes * body.resources.gpus_per_node


def bodies(plan: Lifecycle) -> list[JobBody]:
    return [body for stage in plan.spec.stages for _, _, body in stage.works()]


def model_of(body: JobBody) -> ModelConfig:
    return read_config({"TRIMTAB_ROUTER_JSON": json.dumps(body.router)})[0]


def layout_of(body: JobBody) -> Layout:
    """One micro batch at a time on all GPUs, or on the trainer's in reinforcement learning."""
    extra = body.train.model_dump(by_alias=True)
    count = extra.get("trainerNodes", body.resources.nodes) * body.resources.gpus_per_node
    context, micro = extra["contextParallel"], extra["microBatch"]
    return Layout(count, body.train.length, context, sequences=micro, optimizer=extra["optimizer"])


def test_it_is_a_lifecycle_that_says_that_it_was_not_run() -> None:
    assert PLAN.metadata.labels["validated"] == "by shape and arithmetic, not run"
    assert NAME not in templates()
    assert PLAN.stages == (
        *("pretrain-1", "pretrain-2", "midtrain", "sft"),
        *("rl-1", "rl-2", "rl-3a", "rl-3b", "rl-4", "evaluate", "release"),
    )
    assert [stage.source for stage in PLAN.spec.stages] == ["", *PLAN.stages[:-1]]
    assert all(stage.wants_approval for stage in PLAN.spec.stages)


def test_each_number_of_a_stage_names_its_source() -> None:
    """The key of a line of the file, or the line above it, says from where; comments stand behind ` # `."""
    lines = (TEMPLATES / f"{NAME}.yaml").read_text().splitlines()
    begin = next(at for at, line in enumerate(lines) if "name: pretrain-1" in line)
    repeated = False
    for number, line in enumerate(lines[begin:], begin + 1):
        repeated = "as in rl-1" in line or (repeated and line.startswith(" " * 10))
        value = line.split("#")[0].rpartition(":")[2].strip()
        if value.isdigit() and not repeated:
            assert " # " in line, f"line {number}: {line.strip()}"


def test_every_job_is_of_the_model_that_counts_8_30_billion() -> None:
    assert {model_of(body) for body in bodies(PLAN)} == {ZAYA1_8B}
    counts = parameters(ZAYA1_8B)
    assert (round(counts.without_embeddings / 1e9, 2), round(counts.active / 1e6)) == (8.30, 754)


def test_every_shape_is_that_of_transformers_zaya1_8b() -> None:
    """Both built on the meta device, transformers' from its own defaults."""
    with torch.device("meta"):
        ours, theirs = ZayaForCausalLM(ZAYA1_8B), TheirModel(ZayaConfig())
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in theirs.state_dict().items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in ours.state_dict().items()} == wanted


@pytest.mark.parametrize("length", sorted({stage.job.train.length for stage in [*TEXT, *RL]}))
def test_attention_takes_the_length_of_each_stage(length: int) -> None:
    with torch.device("meta"):
        attention = Attention(ZAYA1_8B)
        read = attention(torch.empty(1, length, 2048), positions(ZAYA1_8B, length, None, torch.device("meta")))
    assert read.shape == (1, length, 2048)


@pytest.mark.parametrize("stage", TEXT, ids=lambda stage: stage.name)
def test_steps_read_the_tokens_of_the_stage_and_no_step_more(stage: Stage) -> None:
    body = stage.job
    batch = word(body, "globalBatch") * body.train.length
    assert body.train.steps == math.ceil(word(body, "tokens") / batch)
    groups = gpus(body) // word(body, "contextParallel")
    assert word(body, "globalBatch") == groups * body.train.sequences
    assert batch == 4096 * 4096
    assert body.train.length <= ZAYA1_8B.max_position_embeddings


@pytest.mark.parametrize("stage", RL, ids=lambda stage: stage.name)
def test_pools_of_reinforcement_learning_share_the_nodes(stage: Stage) -> None:
    body = stage.job
    trainers, rollouts = word(body, "trainerNodes"), word(body, "rolloutNodes")
    assert trainers + rollouts == body.resources.nodes
    assert 2 <= rollouts / trainers <= 5
    groups = trainers * body.resources.gpus_per_node // word(body, "contextParallel")
    assert word(body, "prompts") * word(body, "samples") == groups * body.train.sequences
    assert body.train.length <= ZAYA1_8B.max_position_embeddings


def test_stages_of_reinforcement_learning_differ_in_length_and_problems_alone() -> None:
    kept = [{**stage.job.train.model_dump(exclude={"steps"}), "firstLength": None} for stage in RL]
    assert all(one == kept[0] for one in kept)
    assert [stage.job.train.steps for stage in RL] == [232, 400, 384, 464, 384]


@pytest.mark.parametrize("stage", [*TEXT, *RL], ids=lambda stage: stage.name)
def test_a_gpu_holds_what_it_trains(stage: Stage) -> None:
    assert memory(model_of(stage.job), layout_of(stage.job)).total < GPU_BYTES


def test_a_rollout_gpu_holds_the_weights_and_its_share_of_the_completions() -> None:
    for stage in RL:
        body = stage.job
        share = math.ceil(word(body, "prompts") * word(body, "samples") / (word(body, "rolloutNodes") * 8))
        cache = Cache(ZAYA1_8B, share, body.train.length, dtype=torch.bfloat16, device="meta")
        needed = cache_bytes(cache)
        assert needed.keys_values == share * body.train.length * 40 * 2 * 256 * 2
        assert needed.keys_values + needed.state + 2 * parameters(ZAYA1_8B).total < GPU_BYTES


def test_the_context_of_the_evaluation_is_never_exceeded() -> None:
    body = PLAN.stage("evaluate").job
    numbers = {name: value for name, value in body.data.items() if isinstance(value, int)}
    assert numbers["candidates"] * numbers["tail"] + numbers["limit"] < body.train.length


def specs() -> list[JobSpec]:
    return [PLAN.job(stage.name, role, item) for stage in PLAN.spec.stages for role, item, _ in stage.works()]


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.name)
def test_each_job_becomes_whole_nodes_as_pods(spec: JobSpec) -> None:
    plan = first_plan(Places(Path("/runs"), "http://server"), spec)
    options = KubeOptions(image="trainer")
    body = rayjob(plan, options) if spec.spec.kubernetes.ray else kube_job(plan, options)
    asked = [
        (int(pod["containers"][0]["resources"].get("limits", {}).get(GPU_RESOURCE, 0)), count)
        for pod, count in pods_of(body)
    ]
    assert sum(count for each, count in asked if each == 8) == spec.spec.resources.nodes
    assert sum(each * count for each, count in asked) == spec.gpus
    assert spec.gpus == (8 if spec.spec.stage == "release" else 1024)
    if spec.spec.kubernetes.ray:
        assert name_problem(spec.name) == ""
