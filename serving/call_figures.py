"""Counts and times of calls. Every thread keeps its own, so that no request waits for another."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Final

import grpc
from grade.v1.decision_pb2 import ARM_HOLDOUT, Arm
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

BUCKETS_S: Final = (
    *(1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0),
    float("inf"),
)
"""Upper bounds of the buckets of a call's time."""

_Call = tuple[str, str, grpc.StatusCode]


class _Times:
    """Times of one kind of call."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * len(BUCKETS_S)
        self.total_s = 0.0

    def add(self, counts: list[int], total_s: float) -> None:
        self.counts = [one + other for one, other in zip(self.counts, counts, strict=True)]
        self.total_s += total_s


class _Figures:
    """What one thread has counted; only that thread writes to it."""

    def __init__(self) -> None:
        self.calls: dict[_Call, _Times] = {}
        self.decisions: Counter[tuple[str, int]] = Counter()


class CallFigures(Collector):
    """Adds up, when Prometheus asks, what the threads have counted.

    Args:
        registry: that tells Prometheus.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._of_thread = threading.local()
        self._all: list[_Figures] = []
        registry.register(self)

    def called(self, policy: str, method: str, code: grpc.StatusCode, seconds: float) -> None:
        """Count one finished call.

        Args:
            policy: the policy that was asked; empty if it is not served.
            method: name of the RPC.
            code: how it ended.
            seconds: from the start of its handler to its answer.
        """
        calls = self._mine().calls
        times = calls.get((policy, method, code))
        if times is None:
            times = calls[policy, method, code] = _Times()
        times.counts[bisect_left(BUCKETS_S, seconds)] += 1
        times.total_s += seconds

    def decided(self, policy: str, arm: "Arm.ValueType", requests: int = 1) -> None:
        """Count requests that were decided.

        Args:
            policy: the policy.
            arm: the experiment arm of the requests.
            requests: how many.
        """
        self._mine().decisions[policy, arm] += requests

    def collect(self) -> Iterator[Metric]:
        """The sums over all threads."""
        calls: dict[_Call, _Times] = {}
        decisions: Counter[tuple[str, int]] = Counter()
        for figures in list(self._all):
            # `copy` is one step of the interpreter, an iteration would not be.
            for call, times in figures.calls.copy().items():
                calls.setdefault(call, _Times()).add(times.counts, times.total_s)
            decisions += figures.decisions.copy()
        yield _histogram(calls)
        counted = CounterMetricFamily(
            "grade_serving_decisions", "Requests decided, by experiment arm.", None, _DECIDED
        )
        for (policy, arm), requests in sorted(decisions.items()):
            name = "holdout" if arm == ARM_HOLDOUT else "policy"
            counted.add_metric([policy, name], requests)
        yield counted

    def describe(self) -> list[Metric]:
        """Names for the registry, which must be known before anything is counted."""
        return list(self.collect())

    def _mine(self) -> _Figures:
        figures: _Figures | None = getattr(self._of_thread, "figures", None)
        if figures is None:
            figures = self._of_thread.figures = _Figures()
            self._all.append(figures)
        return figures


_DECIDED = ["policy", "arm"]
_CALLED = ["policy", "method", "code"]


def _histogram(calls: dict[_Call, _Times]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "grade_serving_rpc_seconds",
        "Time from the start of a unary call's handler to its answer, by method and status code.",
        labels=_CALLED,
    )
    for (policy, method, code), times in calls.items():
        below, buckets = 0, []
        for bound, count in zip(BUCKETS_S, times.counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), below))
        family.add_metric([policy, method, code.name], buckets, times.total_s)
    return family
