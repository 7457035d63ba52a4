"""Raw and zstd give back what they took, and refuse to allocate for what they did not make."""

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvstore.codec.lossless import MAX_WINDOW_BYTES, Codec, decode, encode
from kvstore.core.errors import CorruptFrame


@given(st.sampled_from(Codec), st.binary(min_size=1, max_size=2000), st.integers(1, 20))
def test_bytes_come_back(codec, unit, times):
    raw = unit * times
    used, stored = encode(codec, raw)
    assert len(stored) <= len(raw)
    assert bytes(decode(used, stored, len(raw))) == raw


def test_a_codec_that_gains_nothing_is_not_used():
    raw = bytes(range(256))
    assert encode(Codec.ZSTD, raw) == (Codec.RAW, raw)


@pytest.mark.parametrize("raw_bytes", [0, 999, 1001, 1 << 40])
@pytest.mark.parametrize("codec", Codec)
def test_another_length_is_refused(codec, raw_bytes):
    used, stored = encode(codec, bytes(1000))
    with pytest.raises(CorruptFrame):
        decode(used, stored, raw_bytes)


def test_a_bomb_is_refused_before_it_is_unpacked():
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(CorruptFrame, match="asks for 67108864 bytes instead of 1000"):
        decode(Codec.ZSTD, bomb, 1000)


def test_a_window_beyond_the_limit_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=25, write_content_size=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=1000)
    stored = packer.compress(bytes(1000)) + packer.flush()
    if zstandard.get_frame_parameters(stored).window_size <= MAX_WINDOW_BYTES:
        stored = bytearray(b"\x28\xb5\x2f\xfd\x40\x78\xe8\x02")  # window 2^25, content size 1000, no blocks
    with pytest.raises(CorruptFrame, match="window"):
        decode(Codec.ZSTD, stored, 1000)


def test_bytes_that_are_not_zstd_are_refused():
    for junk in (b"", b"\0" * 20, encode(Codec.ZSTD, bytes(1000))[1][:-3], encode(Codec.ZSTD, bytes(1000))[1] + b"x"):
        with pytest.raises(CorruptFrame):
            decode(Codec.ZSTD, junk, 1000)
