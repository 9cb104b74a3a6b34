"""What a policy server tells Prometheus."""

from functools import lru_cache
from typing import Final

import grpc
from prometheus_client import Counter, Gauge, Histogram

_RPC: Final = Histogram(
    "grade_serving_rpc_seconds",
    "Time from the start of a unary call's handler to its answer, by method and status code.",
    ["method", "code"],
    buckets=(1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0),
)
DECISIONS: Final = Counter(
    "grade_serving_decisions_total", "Requests decided, by experiment arm.", ["arm"]
)
SWAPS: Final = Counter("grade_serving_swaps_total", "Policy versions swapped in.")
REFUSED: Final = Counter(
    "grade_serving_snapshots_refused_total",
    "Snapshots that were not served, by the check that they failed and the reason.",
    ["check", "reason"],
)
CALLS_REFUSED: Final = Counter(
    "grade_serving_calls_refused_total",
    "Calls that asked for what cannot be answered, by reason.",
    ["reason"],
)
EPOCH: Final = Gauge("grade_serving_epoch", "Epoch of the serving version; 0 is the baseline's.")
VERSION: Final = Gauge("grade_serving_version", "The serving version; 0 is the declared baseline.")
VERSION_AGE: Final = Gauge(
    "grade_serving_version_age_seconds", "Time since the serving version was swapped in."
)
KAFKA_AGE: Final = Gauge(
    "grade_serving_kafka_age_seconds",
    "Time since the parameters topic was last heard from; -1 if never.",
)
READY: Final = Gauge("grade_serving_ready", "1 while requests are answered, else 0.")


def observe_rpc(method: str, code: grpc.StatusCode, seconds: float) -> None:
    """Count one finished call."""
    _rpc(method, code).observe(seconds)


@lru_cache(maxsize=256)
def _rpc(method: str, code: grpc.StatusCode) -> Histogram:
    # Looking a label up costs more than observing.
    return _RPC.labels(method=method, code=code.name)
