"""Plays a folder of real requests in event time, and says what the served policy was worth.

A request at time t is served with the version that has learned every slot that ended at or before t
and none later, whatever machine plays it: requests go slot by slot, and between two slots both logs
of every partition get a tick and the version that is then due is awaited.
"""

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from grade.v1.decision_pb2 import ARM_HOLDOUT

from evaluation.data_folder import DataFolder, LoggedConversion
from evaluation.yardsticks import Lists, mean_gained, ndcg_of_weights
from grade_client import Sampled, SampleQuestion, decode_decision, mean_weights
from policy.fusion import Floats, arm
from policy.schema import Schema


class ShownList(NamedTuple):
    """One request's list, as it is logged."""

    sampled: Sampled
    item_ids: list[str]
    positions: list[int]
    scores: np.ndarray
    """[item, objective] float32."""
    time_ms: int


class UserAction(NamedTuple):
    """One outcome, as it is logged."""

    request_id: str
    item_id: str
    outcome: str
    value: float
    conversion_id: str
    time_ms: int


class Way(Protocol):
    """A system that a folder is played through; it has seen nothing yet."""

    def serve(self, questions: Sequence[SampleQuestion]) -> list[Sampled]:
        """Weights for requests, all with the version that serves now."""

    def log(self, shown: Sequence[ShownList], actions: Sequence[UserAction]) -> None:
        """Log events; each of the two rises in time."""

    def pass_time(self, time_ms: int, version: int) -> None:
        """Tick both logs of every partition, and wait until a version serves.

        Args:
            time_ms: log time before which no event will follow.
            version: the version that is then due.

        Raises:
            GradeError: another version serves, or none in time.
        """

    def version_digests(self) -> list[str]:
        """[version] sha256 of the parameters of each version, as hexadecimal digits."""


class Slot(NamedTuple):
    """A slot of event time."""

    end_ms: int
    requests: range
    """Requests of the slot, by index."""
    conversions: range
    """Conversions of the slot, by index."""
    version: int
    """The version that is due at its end."""


class Served(NamedTuple):
    """What was served for every request."""

    mean: Floats
    """[request, objective] mean weights."""
    executed: Floats
    """[request, objective] the sampled weights that a ranking tier would rank with."""
    decisions_sha256: str
    """Of all decisions in order, as hexadecimal digits."""
    version_digests: list[str]
    """[version] sha256 of the parameters of each version, as hexadecimal digits."""

    @property
    def parameters_sha256(self) -> str:
        """Of the last version's parameters; empty if nothing was learned."""
        return self.version_digests[-1] if self.version_digests else ""


def slots_of(folder: DataFolder, schema: Schema, slot_ms: int) -> list[Slot]:
    """The slots from the first request to the close of the last group.

    A slot makes a version if a group of the policy arm closes in it; a group closes one attribution
    window after its request.

    Args:
        folder: the requests.
        schema: the policy's schema.
        slot_ms: length of a slot in milliseconds.
    """
    times = folder.times_ms
    learned = np.array([arm(schema, unit) != ARM_HOLDOUT for unit in folder.unit_ids], dtype=bool)
    making = np.unique((times[learned] + schema.window_ms) // slot_ms).tolist()
    conversion_times = np.array([c.time_ms for c in folder.conversions], dtype=np.int64)
    last_ms = max(int(times[-1]), int(conversion_times.max(initial=0))) + schema.window_ms
    first, last = int(times[0]) // slot_ms, last_ms // slot_ms
    # Conversions before the first request's slot, if any, are played with it.
    bounds = np.arange(first, last + 2, dtype=np.int64) * slot_ms
    requests = np.searchsorted(times, bounds).tolist()
    conversions = [0, *np.searchsorted(conversion_times, bounds[1:]).tolist()]
    return [
        Slot(
            end_ms=int(bounds[k + 1]),
            requests=range(requests[k], requests[k + 1]),
            conversions=range(conversions[k], conversions[k + 1]),
            version=bisect_right(making, first + k),
        )
        for k in range(last - first + 1)
    ]


def play(
    folder: DataFolder,
    schema: Schema,
    slots: Sequence[Slot],
    way: Way,
    on_slot: Callable[[int], None] = lambda requests: None,
) -> Served:
    """Play a folder through a system.

    Args:
        folder: the requests.
        schema: the policy's schema.
        slots: from `slots_of`.
        way: the system.
        on_slot: called after each slot with how many requests have been played.

    Raises:
        GradeError: a version was not made when it was due.
    """
    count = len(folder.request_ids)
    mean = np.empty((count, schema.n_objectives))
    executed = np.empty((count, schema.n_objectives))
    digest = hashlib.sha256()
    for slot in slots:
        answers = way.serve([_question(folder, each) for each in slot.requests])
        shown = []
        for each, sampled in zip(slot.requests, answers, strict=True):
            mean[each] = mean_weights(decode_decision(sampled.decision), schema)
            executed[each] = sampled.weights
            digest.update(hashlib.sha256(sampled.decision.payload).digest())
            shown.append(_shown(folder, each, sampled))
        actions = [_action(folder, folder.conversions[each]) for each in slot.conversions]
        way.log(shown, actions)
        way.pass_time(slot.end_ms, slot.version)
        on_slot(slot.requests.stop)
    return Served(mean, executed, digest.hexdigest(), way.version_digests())


def second_half_ndcg(lists: Lists, served: Served) -> dict[str, float]:
    """Mean NDCG over the second half of the requests, with what was served for each."""
    half = len(lists.gains) // 2
    return {
        "served_mean": mean_gained(ndcg_of_weights(lists, served.mean)[half:]),
        "served_executed": mean_gained(ndcg_of_weights(lists, served.executed)[half:]),
    }


def first_difference(one: Served, other: Served) -> str | None:
    """Where two plays of the same folder part, in words; None if they are equal bit for bit."""
    pairs = itertools.zip_longest(one.version_digests, other.version_digests, fillvalue="none")
    for version, (a, b) in enumerate(pairs, start=1):
        if a != b:
            return f"version {version}: parameters with sha256 {a} and {b}"
    if one.decisions_sha256 != other.decisions_sha256:
        return "the versions are equal, the decisions are not"
    return None


def _question(folder: DataFolder, request: int) -> SampleQuestion:
    return SampleQuestion(
        folder.request_ids[request], folder.unit_ids[request], folder.features[request]
    )


def _shown(folder: DataFolder, request: int, sampled: Sampled) -> ShownList:
    items = folder.items(request)
    return ShownList(
        sampled,
        folder.item_ids[items],
        folder.positions[items].tolist(),
        folder.scores[items],
        int(folder.times_ms[request]),
    )


def _action(folder: DataFolder, conversion: LoggedConversion) -> UserAction:
    return UserAction(
        folder.request_ids[conversion.request],
        folder.item_ids[conversion.item],
        conversion.outcome,
        conversion.value,
        conversion.conversion_id,
        conversion.time_ms,
    )
