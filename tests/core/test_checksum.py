"""Checksums do not depend on how bytes are cut, and a seal binds bytes to one name."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.checksum import content_checksum, seal
from kvstore.core.keys import BlockKey


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_where_bytes_are_cut_has_no_effect(pieces):
    assert content_checksum(pieces) == content_checksum([b"".join(pieces)])


def test_the_checksum_is_xxh3_128():
    assert content_checksum([]).hex() == "99aa06d3014798d86001c324468d497f"


def test_a_seal_changes_with_everything_that_it_binds():
    key, content = BlockKey(b"p" * 32, 1), b"c" * 16
    first = seal(key, 7, 100, content)
    others = {
        seal(BlockKey(b"q" * 32, 1), 7, 100, content),
        seal(BlockKey(b"p" * 32, 2), 7, 100, content),
        seal(key, 8, 100, content),
        seal(key, 7, 101, content),
        seal(key, 7, 100, b"d" * 16),
        seal(key, 7, 100, content, b"l" * 16),
    }
    assert len(others | {first}) == 7
