"""Each right of ray-rules.yaml, taken away: one thing fails, and says which right it lacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controlplane.backends.base import AttemptPlan, BackendUnavailable, SubmitConflict
from controlplane.backends.kube.backend import KubeBackend
from controlplane.backends.kube.rayjob import RayJobBackend
from controlplane.clock import SystemClock
from tests.kube import kuberay_operator
from tests.kube.conftest import OPTIONS, World, rules
from tests.kube.kuberay_operator import KEY, Operator

RIGHTS = [(rule["resources"][0], verb) for rule in rules("ray") for verb in rule["verbs"]]  # type: ignore[index]  # YAML


@pytest.fixture(scope="module")
def backend(world: World) -> Iterator[RayJobBackend]:
    with kuberay_operator.opened(world, "trimtab-controller-ray-rights") as found:
        yield found


@pytest.fixture
def plan(world: World, backend: RayJobBackend) -> Iterator[AttemptPlan]:
    yield AttemptPlan("ray-rights-1", "uid-rights", 1, "hash", (), 1, ("true",), node_count=1, gpus_per_node=8)
    Operator(world.admin, "ray-rights-1").clear()


@pytest.mark.parametrize(("resource", "verb"), RIGHTS)
def test_without_a_right_one_thing_fails_and_says_so(
    world: World, backend: RayJobBackend, plan: AttemptPlan, resource: str, verb: str
) -> None:
    left = [
        {**rule, "verbs": [one for one in rule["verbs"] if (rule["resources"][0], one) != (resource, verb)]}  # type: ignore[index,attr-defined]
        for rule in rules("ray")
    ]
    left = [rule for rule in left if rule["verbs"]]
    given = {"role": [*rules("controller"), *left], "cluster": rules("reader")}
    poor_api = world.account(f"without-{resource}-{verb}", given)
    poor = RayJobBackend(poor_api, KubeBackend(poor_api, OPTIONS, SystemClock()), SystemClock(), KEY)
    refused = f'cannot {verb} resource "{resource}"'
    if verb in ("list", "watch"):
        if verb == "watch":
            poor.rayjobs.list_once()
        assert poor.rayjobs.run_once() > 0 and poor.rayjobs.counters.failures == 1
        return
    if verb == "get":
        backend.submit(plan)
        assert refused in poor.observe([plan.name], 5.0)[plan.name].reason
    elif verb == "delete":
        backend.submit(plan)
        with pytest.raises(BackendUnavailable, match=refused):
            poor.stop(plan.name, mode="terminate")
    else:
        with pytest.raises(SubmitConflict, match=refused):
            poor.submit(plan)
