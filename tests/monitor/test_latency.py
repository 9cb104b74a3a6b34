"""Latency from window close to serving, worked out by hand."""

import math

from monitor.latency import CloseToServed


def test_a_group_waits_for_the_first_swap_that_covers_its_slot() -> None:
    latency = CloseToServed()
    latency.group(950)  # slot 9
    latency.group(1_010)  # slot 10
    latency.swap(9, 100, 1_040)
    assert latency.latencies_ms == [90]
    assert latency.waiting == 1
    latency.swap(12, 100, 1_300)
    assert latency.latencies_ms == [90, 290]


def test_a_group_that_is_seen_after_its_swap_is_measured_by_that_swap() -> None:
    latency = CloseToServed()
    latency.swap(9, 100, 1_040)
    latency.swap(10, 100, 1_130)
    latency.swap(11, 100, 1_240)
    latency.group(1_010)  # slot 10, served at 1130
    latency.group(905)  # slot 9, served at 1040
    assert latency.latencies_ms == [120, 135]


def test_a_swap_back_to_an_older_slot_covers_nothing_new() -> None:
    latency = CloseToServed()
    latency.swap(10, 100, 1_100)
    latency.swap(7, 100, 1_200)
    latency.group(1_050)
    assert latency.latencies_ms == [50]


def test_percentiles_of_nothing_are_nan_and_of_the_last_are_of_the_last() -> None:
    latency = CloseToServed()
    assert math.isnan(latency.percentiles([50])[0])
    latency.swap(0, 100, 100)
    for close in (90, 80, 70, 60):
        latency.group(close)
    assert latency.percentiles([0, 100]) == [10.0, 40.0]
    assert latency.percentiles([0, 100], last=2) == [30.0, 40.0]


def test_slots_of_another_length_are_compared_by_their_ends() -> None:
    latency = CloseToServed()
    latency.group(1_050)
    latency.swap(9, 100, 1_020)  # up to 1000
    latency.swap(4, 250, 1_300)  # up to 1250, although its number is lower
    assert latency.latencies_ms == [250]


def test_a_version_that_was_taken_over_covers_nothing() -> None:
    latency = CloseToServed()
    latency.group(950)
    latency.swap(-1, 100, 1_020)
    assert latency.waiting == 1
