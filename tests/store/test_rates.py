"""Speeds of tiers: bytes per second in which something was under way, however many transfers share it."""

import pytest

from kvstore.core.keys import Tier
from kvstore.store.rates import LEAST_BYTES, MEMORY_BYTES, Rates

MIB = 1 << 20


@pytest.fixture
def now():
    return [100.0]


@pytest.fixture
def rates(now):
    return Rates(clock=lambda: now[0])


def test_four_reads_at_a_time_measure_the_tier_and_not_a_quarter_of_it(rates, now):
    for _ in range(50):
        for _ in range(4):
            rates.begin_read(Tier.DISK)
        now[0] += 0.004  # four of 1 MiB: 1 GiB/s the tier, a quarter of that each
        for _ in range(4):
            rates.end_read(Tier.DISK, MIB)
    assert rates.read[Tier.DISK] == pytest.approx(MIB / 0.001, rel=0.05)
    assert not rates.written


def test_reads_that_overlap_count_their_common_time_once(rates, now):
    rates.begin_read(Tier.DISK)
    now[0] += 1
    rates.begin_read(Tier.DISK)
    now[0] += 1
    rates.end_read(Tier.DISK, MIB)
    now[0] += 1
    rates.end_read(Tier.DISK, 2 * MIB)
    assert rates.read[Tier.DISK] == pytest.approx(3 * MIB / 3, rel=0.05)


def test_idle_time_does_not_count(rates, now):
    for _ in range(3):
        rates.begin_write(Tier.DISK)
        now[0] += 0.5
        rates.end_write(Tier.DISK, MIB)
        now[0] += 1000
    assert rates.written[Tier.DISK] == pytest.approx(2 * MIB, rel=0.05)


def test_a_failed_transfer_costs_time_and_moves_nothing(rates, now):
    rates.begin_read(Tier.DISK)
    now[0] += 1
    rates.end_read(Tier.DISK, 0)
    assert Tier.DISK not in rates.read
    rates.begin_read(Tier.DISK)
    now[0] += 1
    rates.end_read(Tier.DISK, 2 * MIB)
    assert rates.read[Tier.DISK] == pytest.approx(MIB, rel=0.05)


def test_small_transfers_tell_nothing_until_they_add_up(rates, now):
    for _ in range(LEAST_BYTES // 4096 + 1):  # bytes fade a little
        assert Tier.DISK not in rates.read
        rates.begin_read(Tier.DISK)
        now[0] += 0.001
        rates.end_read(Tier.DISK, 4096)
    assert rates.read[Tier.DISK] == pytest.approx(4.096e6, rel=0.01)


def test_bytes_weigh_and_not_calls(rates, now):
    """A slow trickle of small transfers beside large ones moves the average by its share of the bytes."""
    for _ in range(64):
        rates.begin_read(Tier.DISK)
        now[0] += 0.001
        rates.end_read(Tier.DISK, MIB)  # 1 GiB/s
    for _ in range(100):
        rates.begin_read(Tier.DISK)
        now[0] += 0.00001
        rates.end_read(Tier.DISK, 1024)  # a tenth of that, 100 KiB in all
    assert rates.read[Tier.DISK] == pytest.approx(MIB / 0.001, rel=0.05)


def test_a_tier_that_slows_down_is_noticed_within_a_few_times_its_memory(rates, now):
    for seconds, copies in ((0.001, 500), (0.01, 4 * MEMORY_BYTES // MIB)):
        for _ in range(copies):
            rates.begin_read(Tier.DISK)
            now[0] += seconds
            rates.end_read(Tier.DISK, MIB)
    assert rates.read[Tier.DISK] == pytest.approx(MIB / 0.01, rel=0.1)


def test_a_read_that_is_told_of_afterwards_counts_like_one_that_was_announced(rates, now):
    now[0] += 2
    rates.note_read(Tier.HOST, 4 * MIB, 2.0)
    assert rates.read[Tier.HOST] == pytest.approx(2 * MIB, rel=0.05)
    now[0] += 1  # another one of the last two seconds: one of them is counted already
    rates.note_read(Tier.HOST, 2 * MIB, 2.0)
    assert rates.read[Tier.HOST] == pytest.approx(2 * MIB, rel=0.05)
    rates.begin_read(Tier.HOST)
    now[0] += 1
    rates.note_read(Tier.HOST, MIB, 0.5)  # inside an announced one
    now[0] += 1
    rates.end_read(Tier.HOST, 3 * MIB)
    assert rates.read[Tier.HOST] == pytest.approx(10 * MIB / 5, rel=0.05)
