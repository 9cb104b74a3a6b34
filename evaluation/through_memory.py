"""A replay's way through the cores in this process."""

from collections.abc import Sequence

import numpy as np
from grade.v1.context_pb2 import Context
from grade.v1.conversion_pb2 import Conversion
from grade.v1.impression_pb2 import Impression

from evaluation.in_memory import MemoryLoop
from evaluation.replay import ShownList, UserAction
from grade_client import Sampled, SampleQuestion
from policy.errors import GradeError


class ThroughMemory:
    """See `evaluation.replay.Way`.

    Args:
        loop: a system that has seen nothing yet.
        policy: name of its policy.
    """

    def __init__(self, loop: MemoryLoop, policy: str) -> None:
        self._loop = loop
        self._policy = policy

    def serve(self, questions: Sequence[SampleQuestion]) -> list[Sampled]:
        """See `Way`."""
        contexts = [
            Context(
                policy=self._policy,
                request_id=question.request_id,
                unit_id=question.unit_id,
                features=np.asarray(question.features, dtype=np.float32),
            )
            for question in questions
        ]
        return [
            Sampled(
                request_id=context.request_id,
                weights=np.array(response.weights, dtype=np.float32),
                decision=response.decision,
                epoch=response.epoch,
                version=response.version,
                arm=response.arm,
            )
            for context, response in zip(contexts, self._loop.serve_batch(contexts), strict=True)
        ]

    def log(self, shown: Sequence[ShownList], actions: Sequence[UserAction]) -> None:
        """See `Way`."""
        for each in shown:
            impression = Impression(
                policy=self._policy,
                request_id=each.sampled.request_id,
                decision=each.sampled.decision,
                item_ids=each.item_ids,
                positions=each.positions,
                scores=each.scores.ravel(),
                shown_at_ms=each.time_ms,
            )
            self._loop.impression(impression, each.time_ms)
        for action in actions:
            conversion = Conversion(
                policy=self._policy,
                request_id=action.request_id,
                conversion_id=action.conversion_id,
                item_id=action.item_id,
                outcome=action.outcome,
                value=action.value,
                happened_at_ms=action.time_ms,
            )
            self._loop.conversion(conversion, action.time_ms)

    def pass_time(self, time_ms: int, version: int) -> None:
        """See `Way`."""
        self._loop.tick(time_ms)
        seen = len(self._loop.versions)
        if seen != version:
            raise GradeError(f"expected version {version} at event time {time_ms}, seen {seen}")

    def version_digests(self) -> list[str]:
        """See `Way`."""
        return [version.parameters_sha256.hex() for version in self._loop.versions]
