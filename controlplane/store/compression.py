"""zstd for the store's blobs, with one context a thread: making a context costs more than using it."""

from __future__ import annotations

import threading

import zstandard

FAST, SMALL = 1, 5
"""Levels: for what is written as it arrives, and for what is kept."""

_contexts = threading.local()


class CompressionError(ValueError):
    """Bytes that are no zstd frame, or not a whole one."""


def compress(data: bytes, level: int) -> bytes:
    """One frame that knows its plain size."""
    compressors: dict[int, zstandard.ZstdCompressor] | None = getattr(_contexts, "compressors", None)
    if compressors is None:
        compressors = _contexts.compressors = {}
    if level not in compressors:
        compressors[level] = zstandard.ZstdCompressor(level=level, write_checksum=False)
    return compressors[level].compress(data)


def decompress(frame: bytes | memoryview) -> bytes:
    """The plain bytes of a frame; raises CompressionError."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_contexts, "decompressor", None)
    if decompressor is None:
        decompressor = _contexts.decompressor = zstandard.ZstdDecompressor()
    try:
        return decompressor.decompress(frame)
    except zstandard.ZstdError as error:
        raise CompressionError(f"a blob cannot be decompressed: {error}") from error
