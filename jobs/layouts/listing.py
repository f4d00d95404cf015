"""Our own list of a checkpoint's files, with sizes and hashes, where its trainer writes no manifest.

It lies in the run's folder, beside the attempts and never in the trainer's directories. Its hash is what such a
checkpoint is called by: a gate, a lineage and a later stage name it as they name a manifest's. It says that the files
are what they were when they were first read whole, not that the trainer meant them so.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from jobs.layouts.base import SeenCheckpoint
from jobs.manifest import ContractError, Verification, is_text, is_whole, sha256_of, write_json

VERSION = 1


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file relative to the checkpoint's parent directory."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one checkpoint."""

    layout: str
    directory: str
    step: int
    files: tuple[ListedFile, ...]

    def hash(self) -> str:
        """SHA-256 over layout, step, names, sizes and hashes: the same wherever the checkpoint lies."""
        files = [[file.name, file.bytes, file.sha256] for file in self.files]
        return hashlib.sha256(json.dumps([VERSION, self.layout, self.step, files]).encode()).hexdigest()


def place(run_dir: Path, directory: Path) -> Path:
    """Where the list of a checkpoint lies: by the checkpoint's path within the run."""
    name = "--".join(directory.relative_to(run_dir).parts)
    return run_dir / "listings" / f"{name}.json"


def make(layout: str, found: SeenCheckpoint) -> Listing:
    """Reads every file once. OSError; ContractError when one is no longer what it was at the look that found it."""
    files = []
    for file in found.files:
        sha256 = sha256_of(file.path)
        now = file.path.stat()
        if (now.st_size, now.st_mtime_ns) != (file.bytes, file.modified_ns):
            raise ContractError(f"{file.name} was written to while it was read")
        files.append(ListedFile(file.name, file.bytes, sha256))
    return Listing(layout, str(found.directory), found.step, tuple(files))


def write(path: Path, listing: Listing) -> None:
    """Keeps a list, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in listing.files]
    body = {"version": VERSION, "layout": listing.layout, "directory": listing.directory, "step": listing.step}
    write_json(path, {**body, "hash": listing.hash(), "files": files}, durable=True)


def read(path: Path) -> Listing:
    """A list that was kept; ContractError when it cannot be trusted."""
    try:
        found = json.loads(path.read_bytes())
        files = tuple(ListedFile(one["name"], one["bytes"], one["sha256"]) for one in found["files"])
        listing = Listing(found["layout"], found["directory"], found["step"], files)
        kept = found["hash"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError(f"the list {path.name} cannot be read: {error}") from error
    sound = all(is_text(file.name) and is_text(file.sha256) and is_whole(file.bytes) for file in files)
    if not sound or not is_whole(listing.step) or kept != listing.hash():
        raise ContractError(f"the list {path.name} is not what was written")
    return listing


def verify(listing: Listing, directory: Path) -> Verification:
    """Reads every file again and compares; `directory` is where the checkpoint lies now."""
    for file in listing.files:
        path = directory.parent / file.name
        try:
            if not path.is_file():
                return Verification(False, f"{file.name} is missing")
            if path.stat().st_size != file.bytes:
                return Verification(False, f"{file.name} has {path.stat().st_size} bytes, {file.bytes} were listed")
            if sha256_of(path) != file.sha256:
                return Verification(False, f"{file.name} does not have the hash that was listed")
        except OSError as error:
            return Verification(False, f"{file.name} cannot be read: {error}")
    return Verification(True)
