"""A payload that was read straight into its place passes the same checks as one that was copied there."""

from itertools import pairwise

import pytest
from frame_samples import all_raw, all_zstd, header_of, noise, sections_of

from kvstore.codec.frame import encode_frame
from kvstore.codec.frame_in_place import head_bytes, read_head, section_checks, verify_payload, verify_sections
from kvstore.core.errors import CorruptFrame
from kvstore.core.keys import BlockKey
from kvstore.core.layout import Section
from kvstore.core.presets import v4_demo, v4_flash, v4_pro, v4_tiny

TINY = v4_tiny().state
KEY = header_of(TINY, b"").key


def frame_of(group=TINY, raw=None, codec_of=all_raw, **changes):
    raw = noise("raw", group.nbytes) if raw is None else raw
    parts = encode_frame(header_of(group, raw, **changes), group.sections, sections_of(group, raw), codec_of)
    return bytearray(b"".join(parts))


def check(frame, group=TINY, key=KEY, generation=7, cut=1000):
    """As a reader does it: the head from scratch memory, the payload from slots."""
    size = head_bytes(group.sections)
    head = read_head(memoryview(frame)[:size], group.sections, key, generation)
    if head is None:
        return False
    payload = memoryview(frame)[size : size + group.nbytes]
    verify_payload(head, [payload[start : start + cut] for start in range(0, len(payload), cut)])
    return True


@pytest.mark.parametrize("layout", [v4_tiny(), v4_demo(), v4_flash(), v4_pro()], ids=lambda layout: layout.model)
def test_the_head_of_every_preset_is_as_long_as_predicted(layout):
    for index, group in enumerate(layout.groups[:2]):
        frame = frame_of(group)
        size = head_bytes(group.sections)
        assert size % 4096 == 0 or group.nbytes < 64 << 10
        assert check(frame, group, BlockKey(noise("prefix", 32), index))
        assert frame[size:] == noise("raw", group.nbytes)


def test_every_flipped_bit_of_header_table_padding_and_payload_is_found():
    frame = frame_of()
    assert check(frame)
    for position in range(len(frame)):
        frame[position] ^= 1 << position % 8
        with pytest.raises(CorruptFrame):
            check(frame)
        frame[position] ^= 1 << position % 8
    assert check(frame)


def test_another_object_or_generation_is_refused():
    with pytest.raises(CorruptFrame, match="expected object"):
        check(frame_of(), key=BlockKey(noise("other", 32), KEY.group))
    with pytest.raises(CorruptFrame, match="expected generation 8, found 7"):
        check(frame_of(), generation=8)


def test_a_compressed_frame_is_left_to_decode_frame():
    frame = frame_of(raw=bytes(TINY.nbytes), codec_of=all_zstd)
    assert not check(frame.ljust(head_bytes(TINY.sections) + TINY.nbytes, b"\0"))


def test_a_frame_of_other_sections_is_refused_or_left_to_decode_frame():
    swapped = TINY.sections[::-1]
    assert [part.nbytes for part in swapped] != [part.nbytes for part in TINY.sections]
    with pytest.raises(CorruptFrame, match="not those of its layout"):
        section_checks(read_head(memoryview(frame_of())[: head_bytes(TINY.sections)], swapped, KEY, 7), swapped)
    fewer = (Section(0, "one", 1, TINY.nbytes),)
    assert head_bytes(fewer) != head_bytes(TINY.sections)
    assert read_head(memoryview(frame_of())[: max(head_bytes(fewer), 304)], fewer, KEY, 7) is None


def test_sections_are_verified_alone_while_the_rest_is_not_there_yet():
    frame = frame_of()
    size = head_bytes(TINY.sections)
    head = read_head(memoryview(frame)[:size], TINY.sections, KEY, 7)
    checks = section_checks(head, TINY.sections)
    arriving = memoryview(bytearray(TINY.nbytes))
    for index, (start, end) in enumerate(pairwise(checks.edges)):
        with pytest.raises(CorruptFrame, match=f"section {index} of"):
            verify_sections(checks, arriving, 0, index + 1)
        arriving[start:end] = frame[size + start : size + end]
        verify_sections(checks, arriving, 0, index + 1)
        arriving[end - 1] ^= 1
        with pytest.raises(CorruptFrame, match=f"section {index} of"):
            verify_sections(checks, arriving, index, index + 1)
        arriving[end - 1] ^= 1
    verify_payload(head, [arriving])
