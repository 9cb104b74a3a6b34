"""Prometheus metrics of the learner process."""

import time

from prometheus_client import Counter, Gauge, Histogram

from stream.learning_terms import LearningTerms
from stream.version_chain import TAKEN_OVER, Learned

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

POLICY = Gauge(
    "grade_learner_policy",
    "1 for the policy that this process works for; joins its name to the other metrics.",
    ["policy"],
)
VERSIONS = Counter("grade_learner_versions_total", "Versions that were learned.")
GROUPS = Counter("grade_learner_groups_total", "Reward groups that were applied.")
INFORMATIVE_GROUPS = Counter(
    "grade_learner_informative_groups_total", "Applied groups whose members' rewards differ."
)
STALE_GROUPS = Counter(
    "grade_learner_stale_groups_total",
    "Informative groups that the served steps left out as too old (learn_staleness_cap).",
)
REPEATS = Counter("grade_learner_repeated_groups_total", "Groups that were read again and skipped.")
WAITING_GROUPS = Gauge(
    "grade_learner_waiting_groups", "Groups that were read and whose slot is not complete."
)
VERSION = Gauge("grade_learner_version", "Last version that was published, within its epoch.")
EPOCH = Gauge("grade_learner_epoch", "Epoch of the versions.")
REWARD = Gauge(
    "grade_learner_reward_gain", "Mean posterior reward of the last slot's executed members."
)
KL = Gauge("grade_learner_kl_nats", "KL divergence of the last version from the one before.")
CONCENTRATION = Gauge(
    "grade_learner_concentration_alpha", "Mean sum of alpha over the last slot's contexts."
)
CLIP_FRACTION = Gauge("grade_learner_clip_ratio", "Share of the last slot's ratios that clipped.")
GRADIENT_NORM = Gauge("grade_learner_gradient_norm", "Norm of the last slot's gradient.")
GATE = Gauge("grade_learner_gate_ratio", "Share of the contextual part in the served mean.")
MEAN_WEIGHT = Gauge(
    "grade_learner_mean_weight_ratio",
    "Mean fusion weight over the last slot's contexts.",
    ["objective"],
)
LEARN_SECONDS = Histogram(
    "grade_learner_learn_seconds", "Time to learn one slot.", buckets=_SECONDS
)
CHECKPOINT_SECONDS = Histogram(
    "grade_learner_checkpoint_seconds", "Time to make a checkpoint durable.", buckets=_SECONDS
)
PUBLISH_SECONDS = Histogram(
    "grade_learner_publish_seconds",
    "Time until Kafka has confirmed the versions of a checkpoint.",
    buckets=_SECONDS,
)
SLOT_TO_PUBLISHED_SECONDS = Histogram(
    "grade_learner_slot_to_published_seconds",
    "Wall time from the end of a slot to its confirmed version; log time must be the broker's.",
    buckets=_SECONDS,
)
WRITES_REFUSED = Counter(
    "grade_learner_writes_refused_total", "Times that the disk did not take a checkpoint."
)
CHECKPOINTS_REFUSED = Counter(
    "grade_learner_checkpoints_refused_total",
    "Checkpoint files that could not be loaded, by reason.",
    ["reason"],
)
KAFKA_RETRIES = Counter(
    "grade_learner_kafka_retries_total", "Calls of Kafka that failed and were tried again."
)


def observe(learned: Learned, terms: LearningTerms) -> None:
    """Show a version that has been published.

    Args:
        learned: the version.
        terms: of the newest generation; it may be of an earlier one.
    """
    version = learned.version
    VERSIONS.inc()
    GROUPS.inc(version.groups)
    INFORMATIVE_GROUPS.inc(version.informative_groups)
    STALE_GROUPS.inc(version.stale_groups)
    VERSION.set(version.version)
    EPOCH.set(version.epoch)
    GATE.set(version.gate)
    if learned.slot == TAKEN_OVER:
        MEAN_WEIGHT.clear()  # objectives may have gone
        return
    REWARD.set(version.reward)
    KL.set(version.kl)
    CONCENTRATION.set(version.concentration)
    CLIP_FRACTION.set(version.clip_fraction)
    GRADIENT_NORM.set(version.gradient_norm)
    if version.generation == terms.generation:
        # A slot of groups with unusable numbers has no mean weights.
        names = [each.name for each in terms.schema.objectives]
        for name, weight in zip(names, version.mean_weights, strict=False):
            MEAN_WEIGHT.labels(name).set(weight)
    slot_end_s = (learned.slot + 1) * version.slot_ms / 1000
    SLOT_TO_PUBLISHED_SECONDS.observe(max(0.0, time.time() - slot_end_s))
