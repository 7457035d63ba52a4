"""The book of lineages says only what is certain."""

from __future__ import annotations

from kvstore.client.lineages import Lineages, Parent
from kvstore.core.lineage import ROOT_LINEAGE

ROOT, ONE, TWO = bytes(32), b"1" * 32, b"2" * 32
LEFT, RIGHT = b"l" * 16, b"r" * 16


def test_the_root_is_always_known():
    assert Lineages(2).under(ROOT, ROOT) == ROOT_LINEAGE


def test_what_was_noted_is_known():
    book = Lineages(10)
    book.note(ONE + TWO, LEFT + RIGHT)
    assert book.under(ONE, ROOT) == LEFT and book.under(TWO, ROOT) == RIGHT
    assert book.under(b"3" * 32, ROOT) is Parent.UNKNOWN


def test_two_lineages_at_one_position_are_no_answer():
    book = Lineages(10)
    book.note(ONE, LEFT)
    book.note(ONE, RIGHT)
    assert book.under(ONE, ROOT) is Parent.UNKNOWN
    book.note(ONE, RIGHT)
    assert book.under(ONE, ROOT) is Parent.UNKNOWN


def test_a_lookup_does_not_overrule_what_was_computed():
    book = Lineages(10)
    book.note(ONE, LEFT)
    book.note_if_new(ONE, RIGHT)
    book.note_if_new(TWO, RIGHT)
    assert book.under(ONE, ROOT) == LEFT and book.under(TWO, ROOT) == RIGHT


def test_the_book_is_bounded_and_forgets_the_least_used():
    book = Lineages(2)
    book.note(ONE, LEFT)
    book.note(TWO, LEFT)
    book.under(ONE, ROOT)
    book.note(b"3" * 32, LEFT)
    assert book.under(ONE, ROOT) == LEFT and book.under(TWO, ROOT) is Parent.UNKNOWN


def test_what_was_expected_and_never_came_is_nobodys():
    book = Lineages(10)
    book.expect(ONE)
    book.note(ONE, RIGHT)  # another run's, loaded meanwhile
    book.spoil(ONE)
    book.settle(ONE)
    assert book.under(ONE, ROOT) is Parent.UNKNOWN and book.certain(ONE) is None
    book.note(ONE, RIGHT)
    assert book.certain(ONE) is None


def test_a_queued_put_is_expected_until_it_is_settled():
    book = Lineages(10)
    book.expect(ONE + TWO)
    book.expect(TWO)
    assert book.under(ONE, ROOT) is Parent.EXPECTED and book.certain(ONE) is None
    book.note(ONE + TWO, LEFT + RIGHT)
    book.settle(ONE + TWO)
    assert book.under(ONE, ROOT) == LEFT
    assert book.under(TWO, ROOT) is Parent.EXPECTED, "another put of the same position is still queued"
    assert book.certain(TWO) == RIGHT, "for a put that comes before that one"
    book.settle(TWO)
    assert book.under(TWO, ROOT) == RIGHT


def test_a_put_that_was_given_up_leaves_nothing_known():
    book = Lineages(10)
    book.expect(ONE)
    book.settle(ONE)
    assert book.under(ONE, ROOT) is Parent.UNKNOWN and not book.is_noted(ONE)


def test_two_lineages_stay_no_answer_while_a_put_is_queued():
    book = Lineages(10)
    book.note(ONE, LEFT)
    book.note(ONE, RIGHT)
    book.expect(ONE)
    assert book.under(ONE, ROOT) is Parent.UNKNOWN and book.certain(ONE) is None and book.is_noted(ONE)


def test_what_a_lookup_says_does_not_stand_in_for_a_queued_put():
    book = Lineages(10)
    book.expect(ONE)
    book.note_if_new(ONE, RIGHT)
    book.note(ONE, LEFT)
    book.settle(ONE)
    assert book.under(ONE, ROOT) == LEFT
