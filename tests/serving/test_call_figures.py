"""Figures that threads keep for themselves, as Prometheus sees them."""

import threading

import grpc
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.call_figures import CallFigures


def test_what_all_threads_have_counted_is_added_up() -> None:
    registry = CollectorRegistry()
    figures = CallFigures(registry)

    def count() -> None:
        for _ in range(1000):
            figures.called("feed", "Sample", grpc.StatusCode.OK, 0.0015)
            figures.decided("feed", ARM_POLICY)
        figures.decided("feed", ARM_HOLDOUT, 7)
        figures.called("", "Sample", grpc.StatusCode.INVALID_ARGUMENT, 3.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ok = {"policy": "feed", "method": "Sample", "code": "OK"}
    wrong = {"policy": "", "method": "Sample", "code": "INVALID_ARGUMENT"}
    seconds = "grade_serving_rpc_seconds"
    assert registry.get_sample_value(f"{seconds}_count", ok) == 4000
    assert abs((registry.get_sample_value(f"{seconds}_sum", ok) or 0) - 6.0) < 1e-9
    assert registry.get_sample_value(f"{seconds}_bucket", ok | {"le": "0.001"}) == 0
    assert registry.get_sample_value(f"{seconds}_bucket", ok | {"le": "0.002"}) == 4000
    assert registry.get_sample_value(f"{seconds}_bucket", wrong | {"le": "1.0"}) == 0
    assert registry.get_sample_value(f"{seconds}_bucket", wrong | {"le": "+Inf"}) == 4
    decisions = "grade_serving_decisions_total"
    assert registry.get_sample_value(decisions, {"policy": "feed", "arm": "policy"}) == 4000
    assert registry.get_sample_value(decisions, {"policy": "feed", "arm": "holdout"}) == 28


def test_a_time_on_a_bound_counts_below_it() -> None:
    registry = CollectorRegistry()
    figures = CallFigures(registry)
    figures.called("feed", "Sample", grpc.StatusCode.OK, 0.001)
    labels = {"policy": "feed", "method": "Sample", "code": "OK", "le": "0.001"}
    assert registry.get_sample_value("grade_serving_rpc_seconds_bucket", labels) == 1


def test_prometheus_can_read_it() -> None:
    registry = CollectorRegistry()
    CallFigures(registry).called("feed", "Sample", grpc.StatusCode.OK, 0.001)
    text = generate_latest(registry).decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert names == {"grade_serving_rpc_seconds", "grade_serving_decisions"}
