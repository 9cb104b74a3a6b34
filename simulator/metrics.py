"""What simulated traffic tells Prometheus."""

from typing import Final

from prometheus_client import Counter

REQUESTS: Final = Counter("grade_simulate_requests_total", "Requests played.")
FAILED_RPCS: Final = Counter(
    "grade_simulate_failed_rpcs_total", "Calls that the policy server did not answer."
)
EVENTS_REFUSED: Final = Counter(
    "grade_simulate_events_refused_total", "Events that the producer did not take."
)
