"""A bundle of named arrays as bytes, each readable without the others. Pure; used for records that have a fixed shape.

Layout: length of the head (u32, little endian), the head as JSON {name: [dtype, shape, begin, end]}, then one zstd
frame an array.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.store.compression import FAST, compress, decompress

_LENGTH = struct.Struct("<I")


class ArraysError(ValueError):
    """Bytes that are not a bundle, or a name that it does not hold."""


def pack(arrays: Mapping[str, NDArray[Any]], *, level: int = FAST) -> bytes:
    """The arrays, little endian and row major; `level` is zstd's."""
    head, frames, at = {}, [], 0
    for name, array in arrays.items():
        dtype = array.dtype.newbyteorder("<")
        frames.append(compress(np.ascontiguousarray(array, dtype).tobytes(), level))
        head[name] = [dtype.str, list(array.shape), at, at + len(frames[-1])]
        at += len(frames[-1])
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *frames))


class Arrays:
    """A bundle read in place: `bundle["cv"]` decompresses that array only."""

    def __init__(self, blob: bytes) -> None:
        try:
            (length,) = _LENGTH.unpack_from(blob)
            self._start = _LENGTH.size + length
            self._head: dict[str, Any] = json.loads(blob[_LENGTH.size : self._start])
        except (struct.error, ValueError) as error:
            raise ArraysError(f"this is no bundle of arrays: {error}") from error
        self._blob = memoryview(blob)

    def __contains__(self, name: str) -> bool:
        return name in self._head

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._head:
            raise ArraysError(f"the bundle has no array {name}")
        dtype, shape, begin, end = self._head[name]
        try:
            plain = decompress(self._blob[self._start + begin : self._start + end])
            return np.frombuffer(plain, dtype).reshape(shape)
        except ValueError as error:
            raise ArraysError(f"the array {name} is damaged: {error}") from error

    def all(self) -> dict[str, NDArray[Any]]:
        """Every array."""
        return {name: self[name] for name in self._head}
