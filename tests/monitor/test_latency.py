"""Latency from window close to serving, worked out by hand."""

import math

from monitor.latency import CloseToServed


def test_a_group_waits_for_the_first_swap_that_covers_its_slot() -> None:
    latency = CloseToServed(slot_ms=100)
    latency.group(950)  # slot 9
    latency.group(1_010)  # slot 10
    latency.swap(9, 1_040)
    assert latency.latencies_ms == [90]
    assert latency.waiting == 1
    latency.swap(12, 1_300)
    assert latency.latencies_ms == [90, 290]


def test_a_group_that_is_seen_after_its_swap_is_measured_by_that_swap() -> None:
    latency = CloseToServed(slot_ms=100)
    latency.swap(9, 1_040)
    latency.swap(10, 1_130)
    latency.swap(11, 1_240)
    latency.group(1_010)  # slot 10, served at 1130
    latency.group(905)  # slot 9, served at 1040
    assert latency.latencies_ms == [120, 135]


def test_a_swap_back_to_an_older_slot_covers_nothing_new() -> None:
    latency = CloseToServed(slot_ms=100)
    latency.swap(10, 1_100)
    latency.swap(7, 1_200)
    latency.group(1_050)
    assert latency.latencies_ms == [50]


def test_percentiles_of_nothing_are_nan_and_of_the_last_are_of_the_last() -> None:
    latency = CloseToServed(slot_ms=100)
    assert math.isnan(latency.percentiles([50])[0])
    latency.swap(0, 100)
    for close in (90, 80, 70, 60):
        latency.group(close)
    assert latency.percentiles([0, 100]) == [10.0, 40.0]
    assert latency.percentiles([0, 100], last=2) == [30.0, 40.0]
