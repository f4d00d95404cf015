"""PyTorch's distributed checkpoint (DCP): a `.distcp` file a writer, and `.metadata`, renamed into place last.

`.metadata` is a pickle that names the files. It is walked opcode by opcode with pickletools, never loaded: a control
plane must run nothing that lies on a trainer's disk. Source: torch.distributed.checkpoint.filesystem
(FileSystemWriter).
"""

from __future__ import annotations

import pickletools
from pathlib import Path

from jobs.layouts.base import first, missing

METADATA = ".metadata"
MOST_BYTES = 256 << 20
_SUFFIX = ".distcp"


def unfinished(directory: Path) -> str:
    """Why a DCP directory is not finished, as a clause; empty when `.metadata` is there and all that it names."""
    if missing(directory, [METADATA]):
        return f"it has no {METADATA}, which is written last"
    try:
        names = named_files(directory / METADATA)
    except (OSError, ValueError) as error:
        return f"its {METADATA} cannot be read: {error}"
    lacking = missing(directory, names)
    if lacking:
        # the usual cause is a directory that is not the same disk on every node
        return f"its {METADATA} names {first(lacking)}, which is not there"
    return "" if names else f"its {METADATA} names no file"


def named_files(metadata: Path) -> list[str]:
    """The `.distcp` files that a `.metadata` names, in order. OSError; ValueError when it is no whole pickle."""
    if metadata.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    names: set[str] = set()
    try:
        for opcode, argument, _ in pickletools.genops(metadata.read_bytes()):
            if "UNICODE" in opcode.name and isinstance(argument, str) and argument.endswith(_SUFFIX):
                names.add(argument)
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"it is no whole pickle ({error})") from error
    return sorted(name for name in names if "/" not in name and name != _SUFFIX)
