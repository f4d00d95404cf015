"""The binding that a newer ROCm installs beside its library is taken before any other, with its own structures.

In processes of their own: a process has one binding.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agents.stub import library

ROOT = Path(__file__).resolve().parents[2]
NEWER = "26.3.1+1a2b3c4d"
KEEPER = """
import sys, time
from pathlib import Path
from agents.stub import node
node.VERSION = tuple(int(part) for part in sys.argv[2].split("."))
kept = node.StubNode(Path(sys.argv[1]), "bench")
kept.source.follow(3.0)
for second in range(1, 6):
    kept.beat(float(second))
kept.close()
"""


@pytest.fixture
def rocm(tmp_path: Path) -> Path:
    """A ROCm whose binding has a field more in its metrics than the registry's package, and the library for it."""
    named = os.environ.get("TRIMTAB_AMDSMI")
    if not named:
        pytest.skip("TRIMTAB_AMDSMI names no folder with the amdsmi package")
    shipped = tmp_path / "share" / "amd_smi" / "amdsmi"
    shutil.copytree(Path(named) / "amdsmi", shipped, ignore=shutil.ignore_patterns("__pycache__"))
    (shipped / "_version.py").write_text(f'__version__ = "{NEWER}"\n')
    wrapper = shipped / "amdsmi_wrapper.py"
    text = wrapper.read_text()
    grown = text.replace(
        "    ('xgmi_link_status', ctypes.c_uint16 * 8),\n]",
        "    ('xgmi_link_status', ctypes.c_uint16 * 8),\n    ('of_a_newer_release', ctypes.c_uint64 * 4),\n]",
    )
    assert grown != text
    wrapper.write_text(grown)
    built = library.build(shipped, tmp_path / "cache")
    shutil.copytree(built / "lib", tmp_path / "lib")
    return tmp_path


def environment(rocm: Path, package: Path) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(package)])
    return {**os.environ, "ROCM_PATH": str(rocm), "TRIMTAB_STUB_STATE": str(rocm / "state"), "PYTHONPATH": path}


def once(rocm: Path, package: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agents.node.main", "once", "-o", "json", "--host-root", str(rocm / "host")]
    env = environment(rocm, package)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def keep(rocm: Path, package: Path, version: str) -> None:
    """A node whose library is of a version, written with the structures of the binding in `package`."""
    command = [sys.executable, "-c", KEEPER, str(rocm), version]
    subprocess.run(command, env=environment(rocm, package), check=True, timeout=60)


def test_the_binding_beside_the_library_is_taken(rocm: Path) -> None:
    keep(rocm, rocm / "share" / "amd_smi", "26.3.1")
    done = once(rocm, Path(os.environ["TRIMTAB_AMDSMI"]))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gpus"][3]["power_w"] > 500 and found["gpus"][3]["xgmi_links_up"] == 7


def test_the_registrys_package_over_a_newer_library_is_refused(rocm: Path) -> None:
    keep(rocm, rocm / "share" / "amd_smi", "26.3.1")
    shutil.rmtree(rocm / "share")
    done = once(rocm, Path(os.environ["TRIMTAB_AMDSMI"]))
    assert done.returncode == 1 and "26.3 is installed" in done.stderr and "beside its library" in done.stderr


def test_without_a_library_the_package_says_so_and_not_a_key_error(rocm: Path) -> None:
    shutil.rmtree(rocm / "lib")
    shutil.rmtree(rocm / "share")
    done = once(rocm, Path(os.environ["TRIMTAB_AMDSMI"]))
    assert done.returncode == 1
    assert "libamd_smi.so is not found" in done.stderr and "Traceback" not in done.stderr
