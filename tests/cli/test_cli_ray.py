"""The settings of the Ray backend: what they need, and that the token's file is read for each call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controlplane.backends.base import AttemptPlan, BackendUnavailable
from controlplane.backends.ray.words import PLAN, read_plan
from controlplane.cli.ray import open_ray
from controlplane.settings import SettingsError, load


def test_a_ray_cluster_needs_an_address() -> None:
    for address in ("", "head:8265"):
        with pytest.raises(SettingsError, match="ray_address"):
            load({"backend": "ray", "ray_address": address})
    assert load({"backend": "ray", "ray_address": "http://head:8265"}).ray_runtime_path == "/run/trimtab"


def test_a_token_that_cannot_be_read_is_no_evidence(tmp_path: Path) -> None:
    path = tmp_path / "token"
    given = {"backend": "ray", "ray_address": "http://127.0.0.1:1", "ray_token_file": str(path)}
    backend = open_ray(load(given), lambda: True)
    seen = backend.observe(["any"], 1.0)["any"]
    assert seen.state == "unknown" and str(path) in seen.reason
    path.write_text("a token\n")
    with pytest.raises(BackendUnavailable, match="does not answer"):
        backend.fenced("any")


def test_a_job_gets_variables_and_nothing_else() -> None:
    given = {"backend": "ray", "ray_address": "http://127.0.0.1:1/", "ray_runtime_path": "/elsewhere"}
    plan = AttemptPlan("run-1", "uid", 1, "hash", ("a",), 1, ("true",), {}, 1, 8, grace_s=30.0)
    (body,) = open_ray(load(given), lambda: True).forecast(plan).manifests
    environment: Any = body["runtime_env"]
    assert set(environment) == {"env_vars"}, "nothing is installed or uploaded"
    assert environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "60"
    assert read_plan(environment["env_vars"][PLAN]) == (plan, "/elsewhere")
