"""What a policy server tells Prometheus; everything by policy."""

from typing import Final

from prometheus_client import Counter, Gauge

from serving.call_figures import CallFigures

CALLS: Final = CallFigures()
"""Calls and decisions; what a request itself counts."""
SWAPS: Final = Counter("grade_serving_swaps_total", "Policy versions swapped in.", ["policy"])
REFUSED: Final = Counter(
    "grade_serving_snapshots_refused_total",
    "Snapshots that were not served, by the check that they failed and the reason.",
    ["policy", "check", "reason"],
)
CALLS_REFUSED: Final = Counter(
    "grade_serving_calls_refused_total",
    "Calls that asked for what cannot be answered, by reason.",
    ["policy", "reason"],
)
ADOPTED: Final = Counter(
    "grade_serving_snapshots_adopted_total",
    "Snapshots of another generation's schema that were carried over to the served one.",
    ["policy"],
)
EPOCH: Final = Gauge(
    "grade_serving_epoch", "Epoch of the serving version; 0 is the baseline's.", ["policy"]
)
VERSION: Final = Gauge(
    "grade_serving_version", "The serving version; 0 is the declared baseline.", ["policy"]
)
VERSION_AGE: Final = Gauge(
    "grade_serving_version_age_seconds",
    "Time since the serving version was swapped in.",
    ["policy"],
)
KAFKA_AGE: Final = Gauge(
    "grade_serving_kafka_age_seconds",
    "Time since the parameters topic was last heard from; -1 if never.",
    ["policy"],
)
READY: Final = Gauge("grade_serving_ready", "1 while requests are answered, else 0.", ["policy"])
