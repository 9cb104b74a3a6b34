"""Prometheus metrics of the join process."""

from grade.v1.reward_group_pb2 import Counts
from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

POLICY = Gauge(
    "grade_join_policy",
    "1 for the policy that this process works for; joins its name to the other metrics.",
    ["policy"],
)
RECORDS_READ = Counter(
    "grade_join_records_read_total",
    "Input records that were read, those read again after a restart included.",
    ["log"],
)
RECORDS_DECIDED = Gauge(
    "grade_join_decided_records",
    "Input records by fate, as the partition's last progress record counts them.",
    ["partition", "log", "fate"],
)
GROUPS = Counter("grade_join_groups_total", "Reward groups that were written.")
PROGRESS = Counter("grade_join_progress_total", "Progress records that were written.")
REFUSED = Counter(
    "grade_join_refused_total",
    "Records written to late, orphans and dead-letters, by reason.",
    ["reason"],
)
OPEN_GROUPS = Gauge(
    "grade_join_open_groups", "Impressions whose attribution window is open.", ["partition"]
)
LAG = Gauge("grade_join_lag_records", "Records that are not read yet.", ["partition", "log"])
PARTITIONS = Gauge("grade_join_assigned_partitions", "Partitions that this worker owns.")
TICKS = Counter("grade_join_ticks_total", "Ticks that this worker appended.", ["log"])
GAPS = Counter("grade_join_offset_gaps_total", "Batches that did not continue their log.", ["log"])
FEED_SECONDS = Histogram(
    "grade_join_feed_seconds", "Time in the join's core for one batch.", buckets=_SECONDS
)
WRITE_SECONDS = Histogram(
    "grade_join_write_seconds",
    "Time until Kafka has acknowledged what one batch led to.",
    buckets=_SECONDS,
)

_FATES = {field.name: field.name.split("_", 1) for field in Counts.DESCRIPTOR.fields}


def show_decided(partition: int, counts: Counts) -> None:
    """Show the fates of a partition's records."""
    for name, (log, fate) in _FATES.items():
        RECORDS_DECIDED.labels(partition, log, fate).set(getattr(counts, name))


def forget_partition(partition: int) -> None:
    """Drop what is shown of a partition that another worker owns now."""
    OPEN_GROUPS.remove_by_labels({"partition": str(partition)})
    LAG.remove_by_labels({"partition": str(partition)})
    RECORDS_DECIDED.remove_by_labels({"partition": str(partition)})
