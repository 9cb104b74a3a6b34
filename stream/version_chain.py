"""The chain of policy versions as a pure function of the reward-groups log and the generations.

Records of the join in, versions out; no Kafka, no clock, no files. Every slot (slots.py) that holds
a group of the policy arm makes one version, N = f(version N-1, the slot's groups, settings).
So a restart, a second learner, a replay and `grade reconcile` make the same bytes.

Where a generation ends a new epoch begins with a version 1 that was not learned: it is the last one
taken over to the new schema (policy/adoption.py), or what the generation gives as its start.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from grade.v1.generation_pb2 import Generation
from grade.v1.parameters_pb2 import Ledger, ParameterSnapshot, Version
from grade.v1.refused_pb2 import Reason
from grade.v1.reward_group_pb2 import RewardGroup
from safetensors.numpy import save

from policy.adoption import adopt_state
from policy.checkpoint import digest
from policy.errors import BoundaryError, CheckpointRefused
from policy.trainer import NOTHING, StepReport, Trainer
from stream.codec import encode
from stream.learning_terms import LearningTerms, read_learning_terms, read_names
from stream.slots import Names, SlotCutter

# Meaning of the state below; a checkpoint of another layout is refused.
LAYOUT = 2

TAKEN_OVER = -1
"""Slot of a version that was taken over, not learned."""

_TRAINER = "trainer."
_SNAPSHOT = "published.snapshot"
_VERSION = "published.version"

GenerationOf = Callable[[int], Generation]
"""The generation of a number; raises BoundaryError if there is none."""


class Learned(NamedTuple):
    """One version: the last slot that it learned from, its parameters and its lineage."""

    slot: int
    snapshot: ParameterSnapshot
    version: Version


class ChainState(NamedTuple):
    """The whole state of a chain between two versions, as a checkpoint keeps it."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def by_number(generations: Mapping[int, Generation]) -> GenerationOf:
    """Look generations up among those that are known."""

    def find(number: int) -> Generation:
        if number not in generations:
            raise BoundaryError(
                f"expected generation {number} among those of the generations topic, "
                f"seen {sorted(generations)}"
            )
        return generations[number]

    return find


class VersionChain:
    """Learns versions of one policy, slot by slot, from its first generation on.

    Args:
        generations: finds the policy's generations by number.
        partitions: number of partitions of the reward-groups topic.
        generation: number of the one to begin in; only a chain that is restored begins in another
            than the first.

    Raises:
        BoundaryError: there is no such generation, or this build cannot learn by it.
    """

    def __init__(self, generations: GenerationOf, partitions: int, *, generation: int = 1) -> None:
        self._find = generations
        self._partitions = partitions
        self._known_names: dict[int, Names] = {}
        self._terms = terms = read_learning_terms(generations(generation))
        self._epoch = 1
        self._cutter = SlotCutter(partitions, terms.slot_ms, self._names)
        self._trainer = Trainer(terms.schema, terms.trainer, start=terms.start)
        # Gathering the trainer's state costs milliseconds, and it is needed twice per version.
        self._trainer_state = self._trainer.state()
        self._latest: Learned | None = None

    @property
    def terms(self) -> LearningTerms:
        """Those of the generation that is being learned."""
        return self._terms

    @property
    def epoch(self) -> int:
        """Epoch of the next version that is learned."""
        return self._epoch

    @property
    def version(self) -> int:
        """The last version that was made, 0 before the first."""
        return self._latest.version.version if self._latest else 0

    @property
    def latest(self) -> Learned | None:
        """The last version that was made; None before the first."""
        return self._latest

    @property
    def cutter(self) -> SlotCutter:
        """How far the log has been read: ledger, next positions, repeats, groups that wait."""
        return self._cutter

    def feed(
        self, partition: int, value: bytes | None, *, position: int | None = None
    ) -> list[Learned]:
        """Read one record and learn every slot that it completes.

        Args:
            partition: its partition of the reward-groups topic.
            value: its value.
            position: its offset in the topic; counted on from the record before if left out.

        Raises:
            LedgerGap, BoundaryError, StreamError: see `SlotCutter.feed`.
        """
        self.read(partition, value, position=position)
        return list(self.learn())

    def read(self, partition: int, value: bytes | None, *, position: int | None = None) -> None:
        """Read one record without learning yet; arguments and errors as in `feed`."""
        self._cutter.feed(partition, value, position=position)

    def learn(self) -> Iterator[Learned]:
        """Make every version that can be made; between two of them `state` is the whole state."""
        if self._terms.start is not None and self._latest is None:
            yield self._take_over()
        while True:
            for slot, groups in self._cutter.complete():
                learnable = [group for group in groups if in_policy_arm(group)]
                if learnable:
                    report = self._trainer.step(learnable, slot=slot, version=self._last_version())
                    self._trainer_state = self._trainer.state()
                    self._latest = self._make_version(slot, report)
                    yield self._latest
            if not self._cutter.ended:
                return
            self._begin_next()
            yield self._take_over()

    def _begin_next(self) -> None:
        """Go on in the next generation, with what has been learned or what it starts from."""
        old, new = self._terms, read_learning_terms(self._find(self._terms.generation + 1))
        trainer = Trainer(new.schema, new.trainer, epoch=self._epoch + 1, start=new.start)
        if new.start is None:
            state = adopt_state(self._trainer_state, trainer.state(), old.schema, new.schema)
            trainer = Trainer.restore(new.schema, new.trainer, state)
        self._terms = new
        self._epoch += 1
        self._trainer = trainer
        self._trainer_state = trainer.state()
        self._cutter.begin_next(new.slot_ms)

    def _take_over(self) -> Learned:
        report = NOTHING._replace(gate=self._trainer.opening())
        self._latest = self._make_version(TAKEN_OVER, report)
        return self._latest

    def _names(self, generation: int) -> Names:
        if generation not in self._known_names:
            self._known_names[generation] = read_names(self._find(generation))
        return self._known_names[generation]

    def _last_version(self) -> int:
        """The last version that was made in the epoch, 0 before the first."""
        before = self._latest.version if self._latest else Version()
        return before.version if before.epoch == self._epoch else 0

    def _make_version(self, slot: int, report: StepReport) -> Learned:
        before = self._latest.version if self._latest else Version()
        version = self._last_version() + 1
        terms = self._terms
        arrays = self._trainer.serving_parameters()
        parameters = save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})
        parameters_sha256 = hashlib.sha256(parameters).digest()
        snapshot = ParameterSnapshot(
            policy=terms.schema.policy,
            epoch=self._epoch,
            version=version,
            parent=before.version,
            parent_epoch=before.epoch,
            generation=terms.generation,
            schema_digest=terms.schema.digest,
            parameters=parameters,
            parameters_sha256=parameters_sha256,
            slot=slot,
            slot_ms=terms.slot_ms,
        )
        lineage = Version(
            policy=terms.schema.policy,
            epoch=self._epoch,
            version=version,
            parent=before.version,
            parent_epoch=before.epoch,
            generation=terms.generation,
            slot=slot,
            slot_ms=terms.slot_ms,
            ledger=[
                Ledger(partition=partition, offset=offset)
                for partition, offset in enumerate(self._cutter.ledger)
            ],
            parameters_sha256=parameters_sha256,
            groups=report.groups,
            informative_groups=report.informative_groups,
            reward=report.reward,
            kl=report.kl,
            concentration=report.concentration,
            clip_fraction=report.clip_fraction,
            gradient_norm=report.gradient_norm,
            gate=report.gate,
            mean_weights=report.mean_weights,
            prior_scale=report.prior_scale,
            drift_score=report.drift_score,
            began_anew=report.began_anew,
            stale_groups=report.stale_groups,
        )
        lineage.state_sha256 = digest(self._trainer_state, {"lineage": encode(lineage).hex()})
        return Learned(slot, snapshot, lineage)

    def state(self) -> ChainState:
        """Everything that the next version depends on, and the last version as it was published."""
        tensors = {_TRAINER + name: array for name, array in self._trainer_state.items()}
        if self._latest is not None:
            tensors[_SNAPSHOT] = _as_bytes(encode(self._latest.snapshot))
            tensors[_VERSION] = _as_bytes(encode(self._latest.version))
        cutter = self._cutter
        metadata = {
            "layout": str(LAYOUT),
            "policy": self._terms.schema.policy,
            "partitions": str(self._partitions),
            "generation": str(self._terms.generation),
            "generation_sha256": self._names(self._terms.generation).definition.hex(),
            "epoch": str(self._epoch),
            "version": str(self.version),
            "slot": "" if cutter.last_slot is None else str(cutter.last_slot),
            "ledger": json.dumps(cutter.ledger),
            "next_positions": json.dumps(cutter.next_positions),
            "segments": json.dumps(cutter.segments),
        }
        return ChainState(tensors, metadata)

    @classmethod
    def restore(
        cls, generations: GenerationOf, partitions: int, state: ChainState
    ) -> "VersionChain":
        """Go on from a state; the records from its next positions on must be read again.

        Raises:
            BoundaryError: the state was made in another system, or by other settings.
            CheckpointRefused: the state is of another build, incomplete or malformed.
        """
        entries = state.metadata
        layout = entries.get("layout")
        if layout is None:
            raise CheckpointRefused(
                "expected the entry 'layout', seen none", Reason.REASON_MISSING_FIELD
            )
        if layout != str(LAYOUT):
            raise CheckpointRefused(
                f"expected the entry 'layout' to be {LAYOUT}, seen {layout}: of another build",
                Reason.REASON_OUT_OF_RANGE,
            )
        try:
            chain = cls(generations, partitions, generation=int(entries["generation"]))
            chain._restore(state)
        # The file is sound, so another build wrote it, or somebody by hand: whatever is missing or
        # of another kind raises from where it is used.
        except (LookupError, ValueError, TypeError, ArithmeticError, DecodeError) as error:
            raise CheckpointRefused(
                f"expected the state of a learner, seen one that cannot be restored: {error!r}",
                Reason.REASON_UNDECODABLE,
            ) from error
        return chain

    def _restore(self, state: ChainState) -> None:
        entries = state.metadata
        terms = self._terms
        for name, expected in (
            ("policy", terms.schema.policy),
            ("partitions", str(self._partitions)),
            ("generation_sha256", self._names(terms.generation).definition.hex()),
        ):
            if entries[name] != expected:
                raise BoundaryError(
                    f"the checkpoint was learned elsewhere: {name}: expected {expected}, seen "
                    f"{entries[name]} in the checkpoint of generation {terms.generation}; "
                    "give each system a folder of its own"
                )
        self._epoch = int(entries["epoch"])
        self._cutter = SlotCutter(
            self._partitions,
            terms.slot_ms,
            self._names,
            generation=terms.generation,
            ledger=_integers(entries["ledger"]),
            next_positions=_integers(entries["next_positions"]),
            segments=_integers(entries["segments"]),
            last_slot=int(entries["slot"]) if entries["slot"] else None,
        )
        self._trainer = Trainer.restore(
            terms.schema,
            terms.trainer,
            {
                name.removeprefix(_TRAINER): array
                for name, array in state.tensors.items()
                if name.startswith(_TRAINER)
            },
        )
        self._trainer_state = self._trainer.state()
        if int(entries["version"]) > 0:
            version = Version.FromString(state.tensors[_VERSION].tobytes())
            snapshot = ParameterSnapshot.FromString(state.tensors[_SNAPSHOT].tobytes())
            self._latest = Learned(version.slot, snapshot, version)


def in_policy_arm(group: RewardGroup) -> bool:
    """Whether a group is learned from; the contract has no rewards for the holdout arm."""
    return group.HasField("rewards")


def _as_bytes(value: bytes) -> np.ndarray:
    return np.frombuffer(value, dtype=np.uint8)


def _integers(text: str) -> list[int]:
    values: Any = json.loads(text)
    return [int(value) for value in values]
