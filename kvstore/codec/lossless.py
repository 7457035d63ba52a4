"""Codecs that give back exactly the bytes they took: RAW and ZSTD.

Level 1 is the only useful zstd level on caches: negative ones gain nothing, 3 is slower and no smaller (MEASURED
section 5). Any thread; zstd contexts are per thread because one may not be used by two at a time.
"""

from __future__ import annotations

import threading
from enum import IntEnum

import zstandard

from kvstore.core.checksum import Buffer
from kvstore.core.errors import CorruptFrame

ZSTD_LEVEL = 1
MIN_GAIN = 1.05  # below this ratio a section stays raw: decoding would cost more than the bytes saved
MAX_WINDOW_BYTES = 8 << 20  # what zstd's own tools accept without being told; level 1 uses at most 512 KiB


class Codec(IntEnum):
    """How a section's bytes are stored. The numbers are on disk: never reuse one."""

    RAW = 0
    ZSTD = 1


def encode(codec: Codec, raw: Buffer) -> tuple[Codec, Buffer]:
    """The stored bytes and the codec that made them: RAW, and `raw` itself, where `codec` gains under 5 %."""
    if codec is Codec.RAW:
        return Codec.RAW, raw
    stored = _CONTEXTS.compressor.compress(raw)
    if len(stored) * MIN_GAIN > len(raw):
        return Codec.RAW, raw
    return Codec.ZSTD, stored


def decode(codec: Codec, stored: Buffer, raw_bytes: int) -> Buffer:
    """The `raw_bytes` bytes that were encoded. CorruptFrame if these are not they.

    The size and the window that the stored bytes ask for are checked before anything is allocated.
    """
    if codec is Codec.RAW:
        if len(stored) != raw_bytes:
            raise CorruptFrame(f"a raw section has {len(stored)} bytes instead of {raw_bytes}")
        return stored
    try:
        wanted = zstandard.get_frame_parameters(stored)
        if wanted.content_size != raw_bytes:
            raise CorruptFrame(f"a zstd section asks for {wanted.content_size} bytes instead of {raw_bytes}")
        # a single-segment zstd frame has its content as window
        if wanted.window_size > max(MAX_WINDOW_BYTES, raw_bytes):
            raise CorruptFrame(f"a zstd section asks for a window of {wanted.window_size} bytes")
        raw: bytes = _CONTEXTS.decompressor.decompress(stored, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptFrame(f"a zstd section does not decode: {error}") from error
    if len(raw) != raw_bytes:
        raise CorruptFrame(f"a zstd section has {len(raw)} bytes instead of {raw_bytes}")
    return raw


class _Contexts(threading.local):
    """One compressor and one decompressor per thread."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor()


_CONTEXTS = _Contexts()
