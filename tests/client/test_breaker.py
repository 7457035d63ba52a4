"""The breaker, with a clock in the test's hand."""

from __future__ import annotations

import pytest

from kvstore.client.breaker import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, Breaker, BreakerState


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(clock)


def test_calls_pass_until_one_fails(breaker):
    assert breaker.is_closed and breaker.seconds_to_probe() is None and not breaker.probe_due()
    assert breaker.failed()
    assert breaker.state is BreakerState.OPEN


def test_many_failures_of_one_outage_are_one(breaker, clock):
    assert breaker.failed()
    clock.now += 0.05
    assert not breaker.failed()
    assert breaker.seconds_to_probe() == pytest.approx(FIRST_WAIT_SECONDS - 0.05)


def test_one_probe_is_due_after_the_wait_and_only_one(breaker, clock):
    breaker.failed()
    assert not breaker.probe_due()
    clock.now += FIRST_WAIT_SECONDS
    assert breaker.probe_due() and not breaker.probe_due()
    assert breaker.state is BreakerState.PROBING and not breaker.is_closed
    assert breaker.seconds_to_probe() is None


def test_failed_probes_wait_twice_as_long_up_to_a_limit(breaker, clock):
    breaker.failed()
    waits = []
    for _ in range(8):
        waits.append(breaker.seconds_to_probe())
        clock.now += waits[-1]
        assert breaker.probe_due()
        assert not breaker.failed(), "the breaker was open already"
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])
    assert waits[-1] == LONGEST_WAIT_SECONDS


def test_a_probe_that_succeeds_closes_and_forgets(breaker, clock):
    breaker.failed()
    clock.now += 1
    assert breaker.probe_due()
    breaker.failed()
    clock.now += 1
    assert breaker.probe_due() and breaker.succeeded()
    assert breaker.is_closed
    breaker.failed()
    assert breaker.seconds_to_probe() == pytest.approx(FIRST_WAIT_SECONDS)


def test_a_late_success_of_an_older_call_does_not_close(breaker):
    breaker.failed()
    assert not breaker.succeeded()
    assert breaker.state is BreakerState.OPEN
