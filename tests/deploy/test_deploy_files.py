"""What is shipped for a cluster agrees with itself: images with the checkout, the guide with rules and values."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "trimtab"
CONTAINERS = sorted((ROOT / "deploy" / "containers").glob("*.Dockerfile"))
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the guide."""
    section = GUIDE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# --- the guide ---


def test_the_guide_has_a_row_for_each_verb_that_ships() -> None:
    shipped = set()
    for path in (CHART / "files").glob("*-rules.yaml"):
        for rule in yaml.safe_load(path.read_text()):
            group = f" ({rule['apiGroups'][0]})" if rule["apiGroups"][0] else ""
            for resource in rule["resources"]:
                shipped |= {(path.name.split("-")[0], f"{resource}{group}", verb) for verb in rule["verbs"]}
    told = rows("What each permission is for")
    assert sorted((row[0], row[1], row[2]) for row in told) == sorted(shipped)
    assert all(len(row) == 5 and all(row) for row in told)


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Dotted names of values; a map that the chart passes on whole is one value."""
    whole = path.endswith(("resources", "labels", "nodeSelector"))
    if isinstance(value, dict) and value and not whole:
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    else:
        yield path


def test_the_guide_has_each_value() -> None:
    values = set(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    told = {name for row in rows("Values") for name in re.findall(r"`([A-Za-z.]+)`", row[0])}
    assert told == values


def test_every_path_that_the_guide_names_exists() -> None:
    named = set(re.findall(r"(?:deploy(?!/trimtab-)|requirements|files)/[A-Za-z/.*-]+[a-z]", GUIDE))
    assert len(named) > 5
    missing = {name for name in named if not list(ROOT.glob(name)) and not list(CHART.glob(name))}
    assert missing == set()


# --- the chart ---


def test_the_charts_version_is_ours() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    images = yaml.safe_load((CHART / "values.yaml").read_text())["images"]
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert {images[name].rpartition(":")[2] for name in ("server", "agent", "trainer")} == {version}


def test_alerts_ask_for_series_that_exist() -> None:
    known = set(re.findall(r"\| `(trimtab_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    alerts = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        assert set(re.findall(r"trimtab_\w+", alert["expr"])) <= known, alert["alert"]


# --- the images ---


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of a container file, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.stem)
def test_a_container_file_passes_its_linter(path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(hadolint), "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.stem)
def test_a_container_holds_only_what_is_pinned_and_runs_as_nobody(path: Path) -> None:
    found = instructions(path)
    assert [rest for word, rest in found if word == "USER"] == ["10001:10001"]
    allowed = {line.lstrip("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in [part for word, rest in found if word == "COPY" for part in rest.split()[:-1]]:
        assert (ROOT / source).exists() and source.split("/")[0] in allowed, source
    for installs in [rest for word, rest in found if word == "RUN" and "pip install" in rest]:
        assert "--require-hashes" in installs
        assert all(word.startswith("requirements/") for word in installs.split() if word.endswith(".txt"))
    assert not {word for word, _ in found} & {"ADD", "ENTRYPOINT"}, "the chart's args are the command"


def pins(role: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{role}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))


def test_what_one_image_holds_is_pinned_to_one_version() -> None:
    server, ui = pins("server"), pins("ui")
    both = server.keys() & ui.keys()
    assert len(both) > 5
    assert {name: (server[name], ui[name]) for name in both if server[name] != ui[name]} == {}
