"""The scheduler is not given what only Trimtab knows to be bad: nobody marked those nodes in the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from controlplane.backends.kube.api import KubeApi
from controlplane.services import preflight
from controlplane.store import nodes
from controlplane.store.engine import Store
from jobs.spec import load_template
from tests.kube.chaos import KubePilot, wait_for
from tests.kube.conftest import World


@pytest.fixture
def pilot(world: World, controller_api: KubeApi, sqlite_store: Store, tmp_path: Path) -> Iterator[KubePilot]:
    made = KubePilot(world, controller_api, sqlite_store, tmp_path)
    yield made
    made.close()


def test_a_node_that_is_out_of_service_here_gets_no_pod_of_any_run(world: World, pilot: KubePilot) -> None:
    bad = pilot.names[:14]
    with pilot.store.write() as session:
        for name in bad:
            nodes.cordon(session, name, reason="a test", now=pilot.clock.now())
    assert not any(world.node(name)["spec"].get("unschedulable") for name in bad)
    spec = load_template("toy").to_dict()
    told = preflight.check(pilot.store, pilot.kube, pilot.places, spec, pilot.clock.now())
    job, _ = yaml.safe_load_all(told["cluster"]["manifests"])
    affinity = job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": sorted(bad)}]}
    ]
    run = pilot.submit()

    def placed() -> bool:
        pilot.round(0.2)
        return bool(pilot.attempts(run)) and len(pilot.last(run).nodes) == 2

    wait_for(placed)
    assert set(pilot.last(run).nodes) == set(pilot.names[14:])
