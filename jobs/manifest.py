"""A checkpoint's manifest: written last, hashed, read back with suspicion. Standard library only.

A step directory without a readable manifest, or whose files differ from it, is not a checkpoint. Import the names from
`jobs.contract`, which is the front of the contract; this file is its checkpoint half.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"
MANIFEST_VERSION = 1
_STEP = re.compile(r"step-\d{8,}", re.ASCII)
_ATTEMPT_STEP = re.compile(r"attempt-\d+/step-\d+", re.ASCII)
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_LARGEST_INT = 2**63 - 1  # what a database's integer holds
_LARGEST_NUMBER = 2**31 - 1  # of steps, attempts, epochs and ranks


class ContractError(Exception):
    """Something that the contract forbids; the message says what and where."""


@dataclass(frozen=True)
class ManifestFile:
    """One file of a checkpoint: its name within the directory, its size and its SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds. `step` counts completed optimizer steps; `state_at_s` is when that step ended."""

    run_id: str
    attempt_no: int
    epoch: int
    stage: str
    step: int
    world_size: int
    files: tuple[ManifestFile, ...]
    data_position: int
    bias_checksum: str
    state_at_s: float
    written_at_s: float
    parent: str | None = None
    parallel: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    version: int = MANIFEST_VERSION


@dataclass(frozen=True)
class Verification:
    """Whether a directory is what its manifest says, and the reason in a sentence when it is not."""

    ok: bool
    reason: str = ""


def is_whole(value: object) -> bool:
    """Whether a value read from JSON is an integer of 64 bits; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_INT


def is_finite(value: object) -> bool:
    """Whether a value read from JSON is a finite number; an integer too long for a float is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_text(value: object) -> bool:
    """Whether a value read from JSON is text that can be written down again: no NUL and no half of a character."""
    return isinstance(value, str) and _UNWRITABLE.search(value) is None


def as_text(value: str) -> str:
    """Words of an error, with a question mark for each character that cannot be written down again."""
    return _UNWRITABLE.sub("?", value)


def write_json(path: Path, value: Any, durable: bool) -> None:
    """Writes a JSON file whole or not at all; `durable` waits for the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            json.dump(value, file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Waits until a file, or a directory's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_hash(directory: Path) -> str:
    """What a checkpoint is called by for ever: the SHA-256 of its manifest, which has those of all its files.

    ContractError when there is no manifest that can be trusted; it does not read the files (`verify` does).
    """
    read_manifest(directory)
    return sha256_of(directory / MANIFEST)


def step_directory(checkpoint_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoint_dir / f"step-{step:08d}"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Completes a checkpoint: every file is on disk before the manifest appears, whole."""
    for file in manifest.files:
        _sync(directory / file.name)
    write_json(directory / MANIFEST, asdict(manifest), durable=True)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a step directory; raises ContractError when there is none that can be trusted."""
    try:
        found = json.loads((directory / MANIFEST).read_bytes())
        files = tuple(ManifestFile(f["name"], f["bytes"], f["sha256"]) for f in found["files"])
        manifest = Manifest(**{**found, "files": files})
    except FileNotFoundError as error:
        raise ContractError(f"{directory.name} has no manifest: it was never completed") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError(f"{directory.name}'s manifest cannot be read: {error}") from error
    if manifest.version != MANIFEST_VERSION:
        raise ContractError(
            f"{directory.name}'s manifest has version {manifest.version}, {MANIFEST_VERSION} is read here"
        )
    wrong = _malformed(manifest) or _contradicts(manifest, directory)
    if wrong:
        raise ContractError(f"{directory.name}'s manifest {wrong}")
    return manifest


def _malformed(manifest: Manifest) -> str:
    """What is not of its kind in a manifest whose keys are right, or nothing."""
    numbers = (manifest.step, manifest.attempt_no, manifest.epoch, manifest.world_size)
    if not all(is_whole(value) and 0 <= value <= _LARGEST_NUMBER for value in numbers):
        return "lacks its step, attempt, epoch or world size"
    if not is_finite(manifest.state_at_s) or not is_finite(manifest.written_at_s):
        return "lacks its times"
    texts = (manifest.run_id, manifest.stage, manifest.bias_checksum)
    if not all(is_text(value) for value in texts) or not (manifest.parent is None or is_text(manifest.parent)):
        return "lacks its run, stage, bias checksum or parent as text"
    if not is_whole(manifest.data_position):
        return "lacks its data position"
    mappings: tuple[object, ...] = (manifest.parallel, manifest.extra)
    if not all(isinstance(value, dict) for value in mappings):
        return "does not hold its parallel sizes or extras as a mapping"
    for file in manifest.files:
        if not (is_text(file.name) and is_text(file.sha256) and is_whole(file.bytes) and file.bytes >= 0):
            return "names a file without its size or hash"
    return "" if is_whole(sum(file.bytes for file in manifest.files)) else "adds up to more bytes than there are"


def _contradicts(manifest: Manifest, directory: Path) -> str:
    """How a well-formed manifest does not fit where it lies, or nothing."""
    if _STEP.fullmatch(directory.name) and directory.name != step_directory(directory.parent, manifest.step).name:
        return f"is that of step {manifest.step}"
    names = [file.name for file in manifest.files]
    if any("/" in name or name in ("", ".", "..", MANIFEST) for name in names) or len(set(names)) < len(names):
        return "names a file twice or one outside its directory"
    return ""


def _difference(path: Path, file: ManifestFile) -> str:
    """How a file differs from its line in the manifest, or nothing."""
    if not path.is_file():
        return f"{file.name} is missing"
    size = path.stat().st_size
    if size != file.bytes:
        return f"{file.name} has {size} bytes, the manifest says {file.bytes}"
    if sha256_of(path) != file.sha256:
        return f"{file.name} does not have the hash that the manifest gives"
    return ""


def verify(directory: Path) -> Verification:
    """Reads every file of a checkpoint and compares its size and hash with the manifest."""
    try:
        manifest = read_manifest(directory)
    except ContractError as error:
        return Verification(False, str(error))
    if not manifest.files:
        return Verification(False, f"{directory.name}'s manifest lists no file")
    for file in manifest.files:
        try:
            reason = _difference(directory / file.name, file)
        except OSError as error:
            reason = f"{file.name} cannot be read: {error}"
        if reason:
            return Verification(False, reason)
    return Verification(True)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Every step directory of every attempt of a run, with or without a manifest, in order of attempt and step."""
    found = [path for path in run_dir.glob("attempt-*/step-*") if path.is_dir()]
    return sorted(path for path in found if _ATTEMPT_STEP.fullmatch(f"{path.parent.name}/{path.name}"))
