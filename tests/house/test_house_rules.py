"""The habits of the house that a machine can see: sizes, empty packages, light ground floors."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from glob import glob
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("agents", "jobs", "controlplane", "dashboards", "migrations", "tests", "benchmarks", "tools")
FILE_LINES, FUNCTION_LINES = 400, 50
# A file or function over the limit stands here with its reason, or is split.
LONG_FILES: dict[str, str] = {
    "tests/runs/test_runs_reconcile.py": "one walk, one scenario a test, over one pilot",
}
LONG_FUNCTIONS: dict[str, str] = {
    "tests/flow/test_spec_to_resumed_run.py:test_a_spec_becomes_a_run_that_survives_a_fault": "a walk, read in one go",
}
HEAVY = [
    "torch",
    "numpy",
    "sqlalchemy",
    "alembic",
    "streamlit",
    "fastapi",
    "pydantic",
    "httpx2",
    "kubernetes",
    "ray",
    "amdsmi",
    "zstandard",
    "uvicorn",
    "yaml",
    "typer",
]


def sources() -> list[Path]:
    """Each Python file of the rooms, migrations' generated versions apart."""
    found = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return sorted(path for path in found if "versions" not in path.parts)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_longer_than_the_ratchet() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in sources()}
    assert {file: n for file, n in lengths.items() if n > FILE_LINES and file not in LONG_FILES} == {}


def test_no_function_is_longer_than_the_ratchet() -> None:
    found = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                label = f"{name(path)}:{node.name}"
                if lines > FUNCTION_LINES and label not in LONG_FUNCTIONS:
                    found[label] = lines
    assert found == {}


def test_every_package_file_is_empty() -> None:
    rooms = ("agents", "jobs", "controlplane", "dashboards", "migrations")
    assert [name(path) for room in rooms for path in (ROOT / room).rglob("__init__.py") if path.read_text()] == []


def test_every_file_that_is_no_python_is_packaged() -> None:
    """An installed package without a table, a preset or a font fails where no checkout would."""
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for room, patterns in globs.items():
        packaged = {path for pattern in patterns for path in glob(str(ROOT / room / pattern), recursive=True)}
        data = [path for path in (ROOT / room).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
        assert [name(path) for path in data if str(path) not in packaged] == []
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks", "tools"} == set(globs)


def test_every_module_says_why_it_exists() -> None:
    silent = [
        name(path)
        for path in sources()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_no_room_has_a_name_that_says_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    assert [
        name(path) for path in sources() if vague & {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}
    ] == []


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("agents.wire", ()),
        ("agents.readings", ()),
        ("agents.node.main", ()),
        ("jobs.contract", ()),
        ("jobs.launch", ()),
        ("jobs.termination", ()),
        ("jobs.spec", ("pydantic", "yaml")),
        ("jobs.lifecycle", ("pydantic", "yaml")),
    ],
)
def test_a_contract_imports_without_the_heavy_libraries(module: str, allowed: tuple[str, ...]) -> None:
    blocked = [library for library in HEAVY if library not in allowed]
    program = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\nimport {module}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_amdsmi_is_loaded_in_one_place_and_over_the_stub() -> None:
    """By name, which no import contract sees: its import fails where there is no ROCm library."""
    loading = [
        name(path) for path in sources() if "tests" not in path.parts and 'import_module("amdsmi' in path.read_text()
    ]
    assert loading == ["agents/node/sources/amd/binding.py", "agents/stub/node.py"]


def test_nothing_names_a_registry_or_lists_download_addresses() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in path.read_text(), path
    assert not (ROOT / "uv.lock").exists()
