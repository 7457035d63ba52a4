"""V4's formats against a slow, independent reading of their definition, at the edges, and as golden bytes."""

import bisect
import hashlib
import itertools
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kvstore.codec.v4_formats import INDEXER_FP8, INDEXER_MXFP4, MAIN  # noqa: E402

GOLDEN = Path(__file__).with_name("golden_v4_formats.bin")
CODECS = [MAIN, INDEXER_MXFP4, INDEXER_FP8]


def e4m3_values() -> list[float]:
    """Every finite e4m3 magnitude, ascending, so that the index is the code."""
    subnormal = [mantissa * 2.0**-9 for mantissa in range(8)]
    normal = [(1 + mantissa / 8) * 2.0**exponent for exponent in range(-6, 9) for mantissa in range(8)]
    return (subnormal + normal)[:127]  # the last pattern is NaN


E4M3 = e4m3_values()
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def nearest_even(value: float, table: list[float]) -> int:
    """Code of the table's nearest value, ties to the even code, saturating. The sign is left out."""
    above = bisect.bisect_left(table, abs(value))
    if above == len(table):
        return above - 1
    if above == 0 or table[above] == abs(value):
        return above
    low, high = abs(value) - table[above - 1], table[above] - abs(value)
    return above - 1 if low < high or (low == high and above % 2) else above


def slow_group(values: list[float], table: list[float], floor: float) -> tuple[list[int], list[float], int]:
    """Codes, values and scale exponent of one group, in Python floats (exact here: all are fp32 and powers of two)."""
    limit = table[-1]
    largest = max(max(abs(value) for value in values), floor)
    exponent = math.frexp(largest / limit)[1]  # fp64 division: exact enough to start from, then made sure of
    while limit * 2.0**exponent >= largest:
        exponent -= 1
    exponent += 1
    codes = [nearest_even(value / 2.0**exponent, table) for value in values]
    signs = [math.copysign(1.0, value) for value in values]
    means = [sign * table[code] * 2.0**exponent for sign, code in zip(signs, codes, strict=True)]
    return (
        [code | (half_range(table) if sign < 0 else 0) for code, sign in zip(codes, signs, strict=True)],
        means,
        exponent,
    )


def half_range(table: list[float]) -> int:
    return 128 if len(table) == 127 else 8


def slow_main(row: list[float], bf16: list[int]) -> tuple[bytes, bytes, list[float]]:
    data, scales, means = [], [], []
    for start in range(0, 448, 64):
        codes, values, exponent = slow_group(row[start : start + 64], E4M3, float(torch.tensor(1e-4)))
        data += codes
        means += values
        scales.append(exponent + 127)
    return bytes(data) + b"".join(x.to_bytes(2, "little") for x in bf16), bytes([*scales, 0]), means


def samples(width: int, dtype=torch.float32):
    """Rows that meet every edge: zeros, signed zeros, subnormals, limits, ties, huge and tiny groups, noise."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(24, width, generator=generator) * torch.logspace(-12, 12, 24)[:, None]
    rows = [
        torch.zeros(width),
        -torch.zeros(width),
        torch.full((width,), 448.0),
        torch.full((width,), -448.0),
        torch.full((width,), 6.0),
        torch.full((width,), 1e-45),
        torch.full((width,), 1e-39),
        torch.full((width,), 9.9e-5),
        torch.full((width,), 1e-4),
        torch.full((width,), 1.0e38),
        torch.full((width,), 2.0**127),
        torch.linspace(-448, 448, width),
        torch.linspace(-6, 6, width),
        torch.linspace(-1.1, 1.1, width) * 2.0**-9,
        torch.full((width,), 448.0).nextafter(torch.tensor(1e9)),
        torch.full((width,), 448.0).nextafter(torch.tensor(0.0)),
        torch.full((width,), 6.0).nextafter(torch.tensor(1e9)),
    ]
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0]).repeat(width // 8)
    e4m3_ties = torch.tensor([(low + high) / 2 for low, high in itertools.pairwise(E4M3)] + [448.0] * 2)
    rows += [ties, -ties, e4m3_ties.repeat(width // 128), -e4m3_ties.repeat(width // 128)]
    for row in rows[-4:]:
        row[::32] = math.copysign(6.0 if row.abs().max() <= 6 else 448.0, row[1])
    return torch.cat([torch.stack(rows), noise]).to(dtype)


def bits(x):
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int64)


def test_main_entries_equal_the_slow_definition():
    rows = samples(512)
    data, scales = MAIN.pack(rows)
    values = MAIN.unpack(data, scales, torch.float32)
    rope = rows[:, 448:].to(torch.bfloat16)
    for index, row in enumerate(rows.tolist()):
        want_data, want_scales, want = slow_main(row, [x & 0xFFFF for x in rope[index].view(torch.int16).tolist()])
        assert bytes(data[index].tolist()) == want_data, f"row {index}"
        assert bytes(scales[index].tolist()) == want_scales, f"row {index}"
        assert torch.equal(bits(values[index, :448]), bits(torch.tensor(want))), f"row {index}"
    assert torch.equal(bits(values[:, 448:]), bits(rope.float()))


@pytest.mark.parametrize(("codec", "table", "group"), [(INDEXER_MXFP4, E2M1, 32), (INDEXER_FP8, E4M3, 128)])
def test_indexer_keys_equal_the_slow_definition(codec, table, group):
    rows = samples(128)
    data, scales = codec.pack(rows)
    values = codec.unpack(data, scales, torch.float32)
    floor = 6 * 2.0**-126 if table is E2M1 else float(torch.tensor(1e-4))
    for index, row in enumerate(rows.tolist()):
        codes, want, exponents = [], [], []
        for start in range(0, 128, group):
            some, means, exponent = slow_group(row[start : start + group], table, floor)
            codes, want, exponents = codes + some, want + means, [*exponents, exponent]
        if table is E2M1:
            want_data = bytes(low | high << 4 for low, high in zip(codes[::2], codes[1::2], strict=True))
            want_scales = bytes(exponent + 127 for exponent in exponents)
        else:
            want_data = bytes(codes)
            want_scales = torch.tensor([2.0 ** exponents[0]]).numpy().tobytes()
        assert bytes(data[index].tolist()) == want_data, f"row {index}"
        assert bytes(scales[index].tolist()) == want_scales, f"row {index}"
        assert torch.equal(bits(values[index]), bits(torch.tensor(want))), f"row {index}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_quantising_twice_changes_nothing_bit_for_bit(codec, dtype):
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(4000, codec.width, generator=generator, dtype=torch.float64)
    rows = torch.cat([samples(codec.width, dtype), noise.to(dtype)])
    once = codec.quantise(rows)
    assert once.dtype == dtype and once.shape == rows.shape
    assert torch.equal(bits(codec.quantise(once)), bits(once))
    assert torch.equal(bits(codec.unpack(*codec.pack(rows), dtype)), bits(once))
    assert torch.equal(bits(codec.unpack(*codec.pack(once), dtype)), bits(once))
    assert not torch.equal(once, rows)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_bytes_of_quantised_values_are_stable(codec):
    once = codec.quantise(samples(codec.width))
    data, scales = codec.pack(once)
    again = codec.pack(codec.unpack(data, scales, torch.float64))
    assert torch.equal(data, again[0]) and torch.equal(scales, again[1])


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_sections_hold_all_data_then_all_scales_and_come_back(codec):
    entries = codec.quantise(torch.randn(6, 32, codec.width, generator=torch.Generator().manual_seed(2)))
    sections = codec.to_sections(entries)
    assert sections.shape == (6, 32 * (codec.data_bytes + codec.scale_bytes))
    data, scales = codec.pack(entries[3])
    assert bytes(sections[3].tolist()) == bytes(data.flatten().tolist()) + bytes(scales.flatten().tolist())
    assert torch.equal(bits(codec.from_sections(sections, torch.float32)), bits(entries))
    assert codec.from_sections(sections[:, : codec.entry_bytes * 0], torch.float32).shape == (6, 0, codec.width)
    with pytest.raises(ValueError, match="not whole"):
        codec.from_sections(sections[:, :-1], torch.float32)


def test_shapes_of_the_cache_are_kept_and_empty_is_fine():
    window = torch.randn(1, 1, 5, 512)
    assert MAIN.quantise(window).shape == window.shape
    assert torch.equal(MAIN.quantise(window)[0, 0], MAIN.quantise(window[0, 0]))
    assert MAIN.quantise(torch.empty(1, 0, 512)).shape == (1, 0, 512)
    assert INDEXER_MXFP4.quantise(torch.empty(1, 0, 128)).shape == (1, 0, 128)


def test_bytes_equal_the_golden_file():
    parts = [codec.to_sections(samples(codec.width)[None])[0] for codec in CODECS]
    packed = bytes(torch.cat(parts).tolist())
    assert len(packed) == GOLDEN.stat().st_size
    assert hashlib.sha256(packed).hexdigest() == hashlib.sha256(GOLDEN.read_bytes()).hexdigest()
