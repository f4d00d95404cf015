"""The preflight's words for what a platform says: reasons counted, limits in units, nothing known taken for granted."""

from __future__ import annotations

import pytest

from controlplane.backends.base import Forecast, Limit, NodeForecast
from controlplane.runs.plan import OUT_OF_REACH, Fit
from controlplane.services import foreseen


def test_a_thousand_nodes_are_one_line() -> None:
    judged = [Fit(f"n{number}", number > 900, "cordoned" if number % 2 else "in use") for number in range(1024)]
    assert foreseen.grouped(judged) == "451 in use (n0, n2, n4 and 448 more), 450 cordoned (n1, n3, n5 and 447 more)"
    many = [Fit(f"n{number}", False, f"silent for {number} s") for number in range(9)]
    assert foreseen.grouped(many).endswith("1 silent for 5 s (n5), 3 reasons more")


def test_the_platforms_reason_stands_where_placement_has_none() -> None:
    judged = [
        Fit("a", True, ""),
        Fit("b", False, OUT_OF_REACH),
        Fit("c", False, "has a fault (hbm)"),
        Fit("d", True, ""),
    ]
    nodes = (
        NodeForecast("a", 8),
        NodeForecast("b", 8, "cordoned in the cluster"),
        NodeForecast("c", 8, "tainted x"),
        NodeForecast("e", 8),
        NodeForecast("f", 8, "not ready (KubeletNotReady)"),
    )
    told = {one.node: one.reason for one in foreseen.fits(judged, Forecast((), nodes=nodes))}
    assert told == {
        "a": "",
        "b": "cordoned in the cluster",
        "c": "has a fault (hbm)",
        "d": foreseen.UNKNOWN_NODE,
        "e": foreseen.NO_AGENT,
        "f": "not ready (KubeletNotReady)",
    }
    assert foreseen.fits(judged, None) == foreseen.fits(judged, Forecast(())) == judged


@pytest.mark.parametrize(
    ("limit", "level", "words"),
    [
        (Limit("q", "pods", 4, 8, 4), "ok", "4 of 8 pods are used, 4 are asked for"),
        (Limit("q", "pods", 5, 8, 4), "warn", "it waits for 1 to be given back"),
        (Limit("q", "pods", 0, 8, 9), "error", "it never has so many"),
        (Limit("q", "limits.memory", 0, 2**40, None), "warn", "no pod is admitted"),
        (
            Limit("q", "requests.memory", 2**30, 2**40, 2**29),
            "ok",
            "1 GiB of 1024 GiB requests.memory are used, 0.5 GiB",
        ),
    ],
)
def test_a_limit_is_said_in_its_unit(limit: Limit, level: str, words: str) -> None:
    (found,) = [one for one in foreseen.checks(Forecast((), limits=(limit,))) if one["name"] == "quota q"]
    assert found["level"] == level and words in found["sentence"]


def test_nothing_is_called_taken_that_was_not_asked() -> None:
    found = foreseen.checks(Forecast(({"kind": "Job"},), unasked=("it does not answer",)))
    assert [(one["level"], one["name"]) for one in found] == [("warn", "cluster")]
    refused = foreseen.checks(Forecast(({"kind": "Job"},), refusals=("Job: no",)))
    assert [(one["level"], one["name"]) for one in refused] == [("error", "manifests")]


def test_a_node_that_is_not_well_is_told_if_it_may_be_chosen() -> None:
    nodes = (NodeForecast("a", 8, health="DiskPressure (x)"), NodeForecast("b", 8, "cordoned", "DiskPressure (x)"))
    (found,) = [one for one in foreseen.checks(Forecast((), nodes=nodes)) if one["name"] == "health"]
    assert found["sentence"] == "nodes that may be chosen report: 1 DiskPressure (x) (a)"
