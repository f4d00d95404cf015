"""Binary frames for the pages: a JSON head and aligned arrays that a browser maps without copying.

Layout: b"TTF1", length of the head (u32, little endian), the head as JSON, padding to 8 bytes, the arrays, each at a
multiple of 8 bytes. The head lists them as {"name", "dtype", "shape", "offset"}, offsets counted from the payload's
start. What the arrays mean is said where they are made (live, views_experts).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"TTF1"
_LENGTH = struct.Struct("<I")
_DTYPES = {"u4": "<u4", "f4": "<f4", "u1": "|u1", "f8": "<f8"}
_ALIGN = 8


class FrameError(ValueError):
    """Bytes that are not a frame."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The arrays of a frame as bytes, with their list and a digest."""

    arrays: tuple[dict[str, Any], ...]
    body: bytes
    digest: bytes


def payload(arrays: Mapping[str, NDArray[Any]]) -> Payload:
    """Arrays of dtype u1, u4, f4 or f8 as a frame's payload."""
    listed, parts, at = [], [], 0
    for name, array in arrays.items():
        dtype = array.dtype.str[1:]
        if dtype not in _DTYPES:
            raise FrameError(f"a frame holds {', '.join(_DTYPES)}, not {array.dtype} ({name})")
        body = np.ascontiguousarray(array, _DTYPES[dtype]).tobytes()
        listed.append({"name": name, "dtype": dtype, "shape": list(array.shape), "offset": at})
        padding = -len(body) % _ALIGN
        parts += [body, bytes(padding)]
        at += len(body) + padding
    whole = b"".join(parts)
    return Payload(tuple(listed), whole, hashlib.sha256(whole).digest())


def tag(content: Payload, meta: Mapping[str, Any]) -> str:
    """An ETag: the same for the same arrays and the same `meta`, from which the caller leaves out what only ages."""
    head = json.dumps(meta, sort_keys=True, default=str).encode()
    return hashlib.blake2b(content.digest + head, digest_size=12).hexdigest()


def pack(kind: str, meta: Mapping[str, Any], content: Payload) -> bytes:
    """A whole frame. A number in `meta` that is not finite becomes null."""
    known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in meta.items()}
    head = json.dumps({"kind": kind, **known, "arrays": content.arrays}, separators=(",", ":")).encode()
    padding = b" " * (-(len(MAGIC) + _LENGTH.size + len(head)) % _ALIGN)
    return b"".join((MAGIC, _LENGTH.pack(len(head) + len(padding)), head, padding, content.body))


def unpack(frame: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A frame's head and arrays; for tests and other Python readers."""
    if frame[:4] != MAGIC or len(frame) < 8:
        raise FrameError("this is no Trimtab frame")
    (length,) = _LENGTH.unpack_from(frame, 4)
    start = 8 + length
    head = json.loads(frame[8:start])
    arrays = {}
    for one in head["arrays"]:
        count = math.prod(one["shape"])
        flat = np.frombuffer(frame, _DTYPES[one["dtype"]], count, start + one["offset"])
        arrays[one["name"]] = flat.reshape(one["shape"])
    return head, arrays
