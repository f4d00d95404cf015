"""Set-up on machines that lack something: one sentence, no traceback, and nothing broken that is believed later."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import install
import programs


def archive(path: Path, *names: str) -> None:
    with tarfile.open(path, "w") as file:
        for name in names:
            file.addfile(tarfile.TarInfo(name), io.BytesIO())


class Npm:
    """npm and node as far as Chromium needs them; the browser starts with `code`."""

    def __init__(self, code: int) -> None:
        self.code, self.probed = code, 0

    def run(self, command: list[Any], cwd: Path | None = None, **_more: Any) -> subprocess.CompletedProcess[str]:
        code = 0
        if command[0] == "npm" and cwd is not None:
            archive(cwd / "chromium.tgz", "package")
        elif command[0] == "node" and cwd is not None:
            (cwd / "chromium").touch()
            archive(cwd / "libraries.tar", "lib")
        else:
            self.probed += 1
            code = self.code
        return subprocess.CompletedProcess(command, code, "", "")


def test_a_browser_that_does_not_start_is_not_believed_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    npm = Npm(127)
    monkeypatch.setattr(programs, "CACHE", tmp_path)
    monkeypatch.setattr(programs.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(programs.subprocess, "run", npm.run)
    assert programs.npm_chromium() is None
    assert programs.npm_chromium() is None and npm.probed == 2
    assert "does not start here" in capsys.readouterr().err
    npm.code = 0
    found = programs.npm_chromium()
    assert found is not None and Path(found).exists()
    assert (programs.npm_chromium(), npm.probed) == (found, 3), "one that started is taken as it is"


def test_without_the_venv_module_set_up_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[Any], **_more: Any) -> subprocess.CompletedProcess[str]:
        if not Path(command[0]).exists():
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 1, "", "No module named venv")

    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setattr(install, "TOOLS", tmp_path / "tools")
    monkeypatch.setattr(install.shutil, "which", lambda _name: None)
    monkeypatch.setattr(install.subprocess, "run", run)
    monkeypatch.setattr(install, "VENV", tmp_path / "venv")
    monkeypatch.setattr(install, "PYTHON", tmp_path / "venv" / "bin" / "python")
    monkeypatch.setattr(sys, "argv", ["install.py"])
    assert install.main() == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[1].startswith("setup: uv could not be installed. Install it yourself")
