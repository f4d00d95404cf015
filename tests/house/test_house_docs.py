"""Documentation that fails: reference pages are what the code says, each file has its line, links lead somewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.rules import incident_machine
from controlplane.runs import states
from controlplane.runs.lifecycle_states import LIFECYCLE, STAGE

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("now", "fleet", "experts", "jobs", "job", "submit", "incidents", "incident")
sys.path.insert(0, str(ROOT / "tools"))

import filelist  # noqa: E402 the tools are scripts beside the packages, not one of them
import lifecycle_pictures  # noqa: E402 as above
import reference  # noqa: E402 as above
import screenshots  # noqa: E402 as above


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_a_reference_page_is_what_the_code_says(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == reference.page(name), "run `make docs`"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_row_of_a_table_is_whole(path: Path) -> None:
    """As many cells as its head, and closed on its own line."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    cut, columns = [], 0
    for line in map(str.rstrip, text.splitlines()):
        is_row = line.startswith("|")
        cells = len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line)))
        columns = (columns or cells) if is_row else 0
        if (is_row and (cells != columns or not line.endswith("|"))) or (not is_row and line.endswith(" |")):
            cut.append(line)
    assert cut == []


def test_the_readme_lists_every_file() -> None:
    assert filelist.listing() in (ROOT / "README.md").read_text(), "run `make docs`"


@pytest.mark.parametrize("table", [states.ATTEMPT, states.RUN, states.DECISION, LIFECYCLE, STAGE])
def test_the_architecture_shows_the_state_tables(table: dict[str, frozenset[str]]) -> None:
    assert states.as_markdown(table) in (ROOT / "ARCHITECTURE.md").read_text()


def test_the_architecture_shows_the_incident_table() -> None:
    assert incident_machine.as_markdown() in (ROOT / "ARCHITECTURE.md").read_text()


def test_every_json_of_the_documentation_is_json() -> None:
    found = [
        block
        for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
        for block in re.findall(r"```json\n(.*?)```", path.read_text(), re.DOTALL)
    ]
    assert len(found) > 10
    for block in found:
        json.loads(block)


def test_nobody_is_told_to_install_what_no_index_has() -> None:
    """Trimtab is installed from a checkout or a wheel: README, Install."""
    rooms = ("agents", "jobs", "controlplane", "dashboards", "deploy", "docs", "tools")
    told = [path for room in rooms for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".md", ".service")]
    assert len(told) > 400
    named = re.compile(r"(pip install|\bInstall) ['\"]?trimtab\b")
    assert [path.name for path in (*ROOT.glob("*.md"), *told) if named.search(path.read_text())] == []


def test_no_page_of_the_documentation_waits_for_its_words() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert [path.name for path in pages if re.search(r"^[A-Z]{3,}$", path.read_text(), re.MULTILINE)] == []


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    broken = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if not target.startswith("http") and not (path.parent / target).exists():
                broken.append(f"{path.name}: {target}")
    assert broken == []


def test_every_command_of_the_readme_exists() -> None:
    said = set(re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert said and said <= targets
    verbs = set(re.findall(r"^trimtab (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    told = subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {verb for verb in verbs if verb not in told} == set()


@pytest.mark.parametrize(("dialogs", "complaints"), [(1, []), (0, ["Failed to load resource: 404"])])
def test_a_page_under_a_dialog_or_with_complaints_is_no_picture(dialogs: int, complaints: list[str]) -> None:
    screenshots.refuse("now", 0, [])
    with pytest.raises(screenshots.NoPicture, match=r"^now: "):
        screenshots.refuse("now", dialogs, complaints)


def test_every_page_has_its_pictures_in_both_appearances() -> None:
    text = (ROOT / "docs" / "pages.md").read_text()
    shown = set(re.findall(r"\(pictures/([\w-]+\.png)\)", text))
    assert shown == {path.name for path in (ROOT / "docs" / "pictures").glob("*.png")}
    pictures = (*PAGES, *screenshots.VIEWS, *lifecycle_pictures.VIEWS)
    assert shown == {f"{name}-{scheme}.png" for name in pictures for scheme in screenshots.SCHEMES}


def test_the_contract_s_page_has_every_variable_that_a_job_is_told() -> None:
    read = re.findall(r'(?:text|number|whole|path)\("([A-Z_]+)"', (ROOT / "jobs/contract.py").read_text())
    given = re.findall(r'"TRIMTAB_([A-Z_]+)"', (ROOT / "controlplane/services/plans.py").read_text())
    told = set(re.findall(r"`TRIMTAB_([A-Z_]+)`", (ROOT / "docs/jobs.md").read_text()))
    assert len(read) > 15 and len(given) > 15
    assert {*read, *given} - told == set()
