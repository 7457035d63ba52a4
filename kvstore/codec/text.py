"""Lines of a stream that may be zstd: told by its first bytes, not by a name. Any thread; one stream, one thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from kvstore.core.errors import InvalidInput

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
PLAIN_BYTES = 1 << 20  # a read of a plain stream
PACKED_BYTES = 8 << 10  # a read of a zstd stream: small, because zstd can make 32,768 bytes of one
MAX_LINE_BYTES = 64 << 20  # a prompt of a million tokens in blocks of one token is 8 MB


def lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines without their ends, as they are decoded. InvalidInput where the stream is damaged, cut off or no text.

    >>> import io
    >>> list(lines(io.BytesIO(b"one\\n\\nthree")))
    [b'one', b'', b'three']
    """
    rest = b""
    for chunk in _decoded(stream):
        head, end, tail = chunk.rpartition(b"\n")
        if end:
            yield from (rest + head).split(b"\n")
            rest = tail
        else:
            rest += tail
        if len(rest) > MAX_LINE_BYTES:
            raise InvalidInput(f"a line is longer than {MAX_LINE_BYTES >> 20} MiB: this is no text file of lines")
    if rest:
        yield rest


def _decoded(stream: BinaryIO) -> Iterator[bytes]:
    first = stream.read(len(ZSTD_MAGIC))
    if first != ZSTD_MAGIC:
        while first:
            yield first
            first = stream.read(PLAIN_BYTES)
        return
    frame = zstandard.ZstdDecompressor().decompressobj()
    packed = first
    try:
        while packed:
            yield frame.decompress(packed)
            packed = frame.unused_data
            if frame.eof and (packed or (packed := stream.read(PACKED_BYTES))):
                frame = zstandard.ZstdDecompressor().decompressobj()  # several frames behind each other are one text
            elif not frame.eof:
                packed = stream.read(PACKED_BYTES)
    except zstandard.ZstdError as error:
        raise InvalidInput(f"zstd data is damaged ({error}): take a whole copy") from error
    if not frame.eof:
        raise InvalidInput("zstd data is cut off: take a whole copy")
