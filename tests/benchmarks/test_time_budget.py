"""Parts of a check share a time that a clock tells; here the clock stands still unless a part moves it."""

import pytest

from contextseg.benchmarks.time_budget import Part, TimeBudget, run_parts


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def part(clock, name, needs, takes, limits):
    def run(limit):
        limits[name] = limit
        clock.now += takes
        return {"took": takes}

    return Part(name, needs, run)


def test_a_part_may_use_what_the_later_ones_do_not_need(clock):
    limits = {}
    parts = [
        part(clock, "tests", 60, 20, limits),
        part(clock, "steps", 90, 30, limits),
        part(clock, "rest", 50, 1, limits),
    ]
    found = dict(run_parts(parts, TimeBudget(480, clock)))
    assert limits == {"tests": 480 - 90 - 50, "steps": 460 - 50, "rest": 430}
    assert found == {"tests": {"took": 20}, "steps": {"took": 30}, "rest": {"took": 1}}


def test_a_part_without_enough_time_is_not_run_and_a_later_short_one_is(clock):
    limits = {}
    parts = [
        part(clock, "long", 10, 75, limits),
        part(clock, "dear", 30, 1, limits),
        part(clock, "short", 20, 1, limits),
    ]
    found = dict(run_parts(parts, TimeBudget(100, clock)))
    assert found["dear"] == {"not run": "25 of the 30 s it needs were left"}
    assert limits["short"] == 25


def test_an_overdrawn_budget_has_nothing_left_for_the_rest(clock):
    limits = {}
    parts = [part(clock, "long", 10, 500, limits), part(clock, "rest", 5, 1, limits)]
    assert dict(run_parts(parts, TimeBudget(100, clock)))["rest"] == {
        "not run": "0 of the 5 s it needs were left"
    }


def test_a_part_that_fails_does_not_end_the_others(clock):
    def broken(_limit):
        raise RuntimeError("out of\nmemory")

    parts = [Part("broken", 1, broken), part(clock, "rest", 1, 1, {})]
    found = dict(run_parts(parts, TimeBudget(100, clock)))
    assert found == {"broken": {"failed": "RuntimeError: out of memory"}, "rest": {"took": 1}}
