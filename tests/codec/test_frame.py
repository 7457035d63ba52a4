"""What a frame promises: the same bytes, or CorruptFrame."""

import json
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from frame_samples import TABLE_OFFSET, all_raw, all_zstd, header_of, noise, sections_of
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.codec import frame_header
from kvstore.codec.frame import (
    HEADER_BYTES,
    decode_frame,
    encode_frame,
    max_frame_bytes,
    peek_header,
    peek_length,
    read_sections,
)
from kvstore.codec.lossless import Codec
from kvstore.core.checksum import content_checksum
from kvstore.core.errors import CorruptFrame, InvalidInput
from kvstore.core.keys import BlockKey
from kvstore.core.layout import Group, GroupKind, Section
from kvstore.core.presets import v4_demo, v4_flash, v4_pro, v4_tiny

GOLDEN = Path(__file__).parent / "golden"
PRESETS = {"v4_flash": v4_flash(), "v4_pro": v4_pro(), "v4_demo": v4_demo()}
TINY = v4_tiny()


def joined(pieces) -> bytes:
    return b"".join(pieces)


def make(group=TINY.rows, raw=None, codec_of=all_raw, **changes) -> bytearray:
    raw = noise("raw", group.nbytes) if raw is None else raw
    return bytearray(
        joined(encode_frame(header_of(group, raw, **changes), group.sections, sections_of(group, raw), codec_of))
    )


@pytest.mark.parametrize(("preset", "index"), [(preset, index) for preset in PRESETS for index in (0, 1)])
def test_a_frame_of_each_preset_is_what_it_was(preset, index):
    group = PRESETS[preset].groups[index]
    golden = json.loads((GOLDEN / "frames.json").read_text())[f"{preset} {group.name}"]
    raw = noise(f"{preset} {group.name}", group.nbytes)
    frame = joined(encode_frame(header_of(group, raw), group.sections, sections_of(group, raw), all_raw))
    assert frame[:TABLE_OFFSET].hex() == golden["header"]
    assert (len(frame), sha256(frame).hexdigest()) == (golden["bytes"], golden["sha256"])
    assert len(frame) == max_frame_bytes(group.sections)
    decoded = decode_frame(memoryview(frame), BlockKey(noise("prefix", 32), index))
    assert joined(decoded.pieces) == raw


@pytest.mark.parametrize("name", ["rows_raw", "state_raw", "state_zstd"])
def test_frames_written_by_version_1_are_read(name):
    frame = memoryview((GOLDEN / f"v4_tiny_{name}.frame").read_bytes())
    group = TINY.groups[0 if name.startswith("rows") else 1]
    raw = noise(f"v4_tiny {group.name}", group.nbytes)
    if name.endswith("zstd"):
        raw = bytes(index // 16 % 256 for index in range(group.nbytes))
        assert Codec.ZSTD in {section.codec for section in read_sections(frame)}
    expected = header_of(group, raw, ttl_seconds=3600.0 if name.endswith("zstd") else None)
    decoded = decode_frame(frame, expected.key, 7)
    assert decoded.header == expected == peek_header(frame[:HEADER_BYTES])
    assert joined(decoded.pieces) == raw
    assert peek_length(frame[:HEADER_BYTES]) == len(frame)


def test_raw_sections_are_neither_copied_nor_changed():
    group = TINY.rows
    raw = bytearray(noise("raw", group.nbytes))
    pieces = sections_of(group, raw)
    buffers = encode_frame(header_of(group, raw), group.sections, pieces, all_raw)
    assert all(ours.obj is raw for ours in buffers[1:])
    frame = bytearray(joined(buffers))
    decoded = decode_frame(memoryview(frame), header_of(group, raw).key)
    (piece,) = decoded.pieces
    assert piece.obj is frame and not piece.readonly


def test_the_payload_of_a_large_frame_starts_on_a_page():
    group = v4_flash().rows
    raw = noise("raw", group.nbytes)
    head, *_ = encode_frame(header_of(group, raw), group.sections, [memoryview(raw)], all_raw)
    assert len(head) == 4096


def test_the_section_table_says_what_lies_where():
    frame = make(TINY.state)
    records = read_sections(memoryview(frame))
    expected = [(section.layer, section.component, section.nbytes) for section in TINY.state.sections]
    assert [(record.layer, record.component, record.raw_bytes) for record in records] == expected


def test_a_section_that_gains_nothing_stays_raw():
    assert {record.codec for record in read_sections(memoryview(make(TINY.state, codec_of=all_zstd)))} == {Codec.RAW}


def test_bytes_that_changed_in_memory_are_not_blessed():
    raw = bytearray(noise("raw", TINY.rows.nbytes))
    header = header_of(TINY.rows, bytes(raw))
    raw[3] ^= 1
    with pytest.raises(CorruptFrame, match="changed in memory"):
        encode_frame(header, TINY.rows.sections, [memoryview(raw)], all_raw)


def test_pieces_of_another_length_are_refused():
    raw = noise("raw", TINY.rows.nbytes)
    with pytest.raises(InvalidInput):
        encode_frame(header_of(TINY.rows, raw), TINY.rows.sections, [memoryview(raw)[1:]], all_raw)


def test_an_unknown_version_is_named():
    frame = make()
    frame[8:10] = (2).to_bytes(2, "little")
    with pytest.raises(CorruptFrame, match="format version 2, this kvstore reads version 1"):
        peek_header(frame)


def test_an_unknown_codec_is_named(monkeypatch):
    frame = make(Group("rows", GroupKind.ROWS, (Section(0, "x", 1, 100),)))
    records = TABLE_OFFSET + 2 + 2 + 1
    frame[records + 4] = 9
    with pytest.raises(CorruptFrame, match="section table"):
        decode_frame(memoryview(frame), header_of(TINY.rows, b"").key)
    monkeypatch.setattr(frame_header.xxhash, "xxh3_128_digest", lambda data: frame[272:288])
    frame[288:304] = frame[272:288]
    with pytest.raises(CorruptFrame, match="codec 9"):
        decode_frame(memoryview(frame), header_of(TINY.rows, b"").key)


def test_another_object_or_generation_is_refused():
    frame, key = memoryview(make()), header_of(TINY.rows, b"").key
    decode_frame(frame, key, 7)
    for wrong in (BlockKey(noise("other", 32), 0), BlockKey(key.prefix, 1)):
        with pytest.raises(CorruptFrame, match="expected object"):
            decode_frame(frame, wrong)
    with pytest.raises(CorruptFrame, match="expected generation 8, found 7"):
        decode_frame(frame, key, 8)


def test_room_of_another_size_is_refused():
    with pytest.raises(CorruptFrame):
        decode_frame(memoryview(make()), header_of(TINY.rows, b"").key, into=[memoryview(bytearray(5))])


@pytest.mark.parametrize("codec_of", [all_raw, all_zstd])
def test_every_flipped_bit_is_found_or_harmless(codec_of):
    group = TINY.state
    raw = bytes(index // 16 % 256 for index in range(group.nbytes)) if codec_of is all_zstd else None
    frame = make(group, raw, codec_of)
    if codec_of is all_zstd:
        assert Codec.ZSTD in {record.codec for record in read_sections(memoryview(frame))}
    key = header_of(group, b"").key
    expected = joined(decode_frame(memoryview(frame), key, 7).pieces)
    for position in range(len(frame)):
        frame[position] ^= 1 << position % 8
        with pytest.raises(CorruptFrame):
            decode_frame(memoryview(frame), key, 7)
        frame[position] ^= 1 << position % 8
    assert joined(decode_frame(memoryview(frame), key, 7).pieces) == expected


def test_a_frame_cut_at_any_byte_is_refused():
    frame = memoryview(make())
    for length in range(len(frame)):
        with pytest.raises(CorruptFrame):
            decode_frame(frame[:length], header_of(TINY.rows, b"").key)


def test_bytes_behind_the_end_have_no_effect():
    key = header_of(TINY.rows, b"").key
    alone = joined(decode_frame(memoryview(make()), key, 7).pieces)
    assert joined(decode_frame(memoryview(make() + b"rest of the page"), key, 7).pieces) == alone


def test_a_wrong_copy_is_found_even_where_every_section_checksum_holds():
    raw = noise("raw", TINY.rows.nbytes)
    header = header_of(TINY.rows, raw)
    frame = bytearray(joined(encode_frame(header, TINY.rows.sections, [memoryview(raw)], all_raw)))
    wrong = replace(header, content=content_checksum([b"other"]))
    _, extent = frame_header.unpack_header(memoryview(frame))
    frame[:HEADER_BYTES] = frame_header.pack_header(wrong, extent)
    with pytest.raises(CorruptFrame, match="content checksum"):
        decode_frame(memoryview(frame), header.key)


sections = st.lists(
    st.builds(
        Section,
        layer=st.just(0),
        component=st.text(min_size=1, max_size=12),
        entries=st.integers(1, 9),
        data_bytes=st.integers(1, 700),
        scale_bytes=st.integers(0, 9),
    ),
    min_size=1,
    max_size=7,
)


def cut_anywhere(data, view):
    edges = sorted({0, len(view), *data.draw(st.lists(st.integers(0, len(view)), max_size=6))})
    return [view[start:end] for start, end in pairwise(edges)]


@settings(max_examples=150, deadline=None)
@given(st.data(), sections)
def test_any_object_comes_back_however_it_is_cut(data, sections):
    group = Group("rows", GroupKind.ROWS, tuple(sections))
    unit = data.draw(st.binary(min_size=1, max_size=40))
    raw = (unit * group.nbytes)[: group.nbytes]
    codecs = [data.draw(st.sampled_from(Codec)) for _ in sections]
    header = header_of(
        group,
        raw,
        block=data.draw(st.integers(0, 2**63)),
        generation=data.draw(st.integers(0, 2**64 - 1)),
        ttl_seconds=data.draw(st.none() | st.floats(0, 1e9)),
        object_class=data.draw(st.integers(0, 255)),
    )
    choice = {id(section): codec for section, codec in zip(group.sections, codecs, strict=True)}
    pieces = cut_anywhere(data, memoryview(raw))
    frame = joined(encode_frame(header, group.sections, pieces, lambda section: choice[id(section)]))
    assert len(frame) <= max_frame_bytes(group.sections)
    assert peek_length(frame) == len(frame)
    target = bytearray(group.nbytes)
    decoded = decode_frame(memoryview(frame), header.key, header.generation, cut_anywhere(data, memoryview(target)))
    assert (decoded.header, bytes(target)) == (header, raw)
    assert joined(decode_frame(memoryview(frame), header.key).pieces) == raw
    names = [section.component for section in read_sections(memoryview(frame))]
    assert names == [section.component for section in sections]
