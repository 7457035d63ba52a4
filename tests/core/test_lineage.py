"""Two chains share a lineage only if every row below is the same."""

from __future__ import annotations

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.lineage import ROOT_LINEAGE, chain_lineages, child_lineage

checksums = st.binary(min_size=16, max_size=16)


def test_lineages_are_those_of_every_earlier_build():
    assert not any(ROOT_LINEAGE) and len(ROOT_LINEAGE) == 16
    assert child_lineage(ROOT_LINEAGE, bytes(range(16))).hex() == "832dd5b8ad3aed9b775aa67fd58d318d"
    assert child_lineage(ROOT_LINEAGE, bytes(range(16))) == xxhash.xxh3_128_digest(bytes(16) + bytes(range(16)))


@given(st.lists(checksums, max_size=6), st.integers(0, 6))
def test_a_chain_may_be_continued_anywhere(rows, cut):
    whole = chain_lineages(ROOT_LINEAGE, b"".join(rows))
    assert len(whole) == 16 * len(rows)
    cut = min(cut, len(rows))
    parent = whole[16 * (cut - 1) : 16 * cut] if cut else ROOT_LINEAGE
    assert whole[: 16 * cut] + chain_lineages(parent, b"".join(rows[cut:])) == whole


@given(st.lists(checksums, min_size=1, max_size=6), st.data())
def test_one_row_of_another_run_changes_every_lineage_from_there_on(rows, data):
    where = data.draw(st.integers(0, len(rows) - 1))
    other = [*rows]
    other[where] = bytes([rows[where][0] ^ 1]) + rows[where][1:]
    ours, theirs = (chain_lineages(ROOT_LINEAGE, b"".join(chain)) for chain in (rows, other))
    same = [ours[i : i + 16] == theirs[i : i + 16] for i in range(0, len(ours), 16)]
    assert same == [True] * where + [False] * (len(rows) - where)


def test_order_counts():
    first, second = bytes(16), bytes(range(16))
    assert chain_lineages(ROOT_LINEAGE, first + second)[16:] != chain_lineages(ROOT_LINEAGE, second + first)[16:]


@pytest.mark.parametrize(("parent", "checksum"), [(bytes(15), bytes(16)), (bytes(16), bytes(17))])
def test_lengths_are_an_invariant(parent, checksum):
    with pytest.raises(AssertionError):
        child_lineage(parent, checksum)
