"""The chain of policy versions as a pure function of the reward-groups log and the settings.

Records of the join in, versions out; no Kafka, no clock, no files. Every slot (slots.py) that holds
a group of the policy arm makes one version, N = f(version N-1, the slot's groups, settings).
So a restart, a second learner, a replay and `grade reconcile` make the same bytes.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from grade.v1.decision_pb2 import ARM_POLICY, Decision
from grade.v1.parameters_pb2 import Ledger, ParameterSnapshot, Version
from grade.v1.refused_pb2 import Reason
from grade.v1.reward_group_pb2 import RewardGroup
from safetensors.numpy import save

from policy.checkpoint import digest
from policy.errors import BoundaryError, CheckpointRefused
from policy.schema import Schema
from policy.trainer import StepReport, Trainer
from policy.trainer_settings import TrainerSettings
from stream.codec import encode
from stream.slots import Boundary, SlotCutter

# Meaning of the state below; a checkpoint of another layout is refused.
LAYOUT = 1

_TRAINER = "trainer."
_SNAPSHOT = "published.snapshot"
_VERSION = "published.version"


class Learned(NamedTuple):
    """What one slot made: the last slot of the version, its parameters and its lineage."""

    slot: int
    snapshot: ParameterSnapshot
    version: Version


class ChainState(NamedTuple):
    """The whole state of a chain between two slots, as a checkpoint keeps it."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


class VersionChain:
    """Learns versions of one policy, slot by slot.

    Args:
        schema: the policy's schema.
        settings: how to learn.
        partitions: number of partitions of the reward-groups topic.
        slot_ms: length of a slot in milliseconds of log time.
        epoch: epoch of the versions.
    """

    def __init__(
        self,
        schema: Schema,
        settings: TrainerSettings,
        partitions: int,
        slot_ms: int,
        epoch: int = 1,
    ) -> None:
        self._schema = schema
        self._settings = settings
        self._partitions = partitions
        self._slot_ms = slot_ms
        self._epoch = epoch
        self._cutter = SlotCutter(partitions, slot_ms)
        self._trainer = Trainer(schema, settings, epoch=epoch)
        # Gathering the trainer's state costs milliseconds, and it is needed twice per version.
        self._trainer_state = self._trainer.state()
        self._latest: Learned | None = None

    @property
    def epoch(self) -> int:
        """Epoch of the versions."""
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
        boundary = self._cutter.boundary
        if boundary is not None and boundary.policy != self._schema.policy:
            raise BoundaryError(
                f"reward-groups partition {partition}: expected records of policy "
                f"{self._schema.policy!r}, seen policy {boundary.policy!r}"
            )

    def learn(self) -> Iterator[Learned]:
        """Learn the complete slots one by one; between two of them `state` is the whole state."""
        for slot, groups in self._cutter.complete():
            learnable = [group for group in groups if in_policy_arm(group)]
            if learnable:
                report = self._trainer.step(learnable, slot=slot)
                self._trainer_state = self._trainer.state()
                self._latest = self._make_version(slot, report)
                yield self._latest

    def _make_version(self, slot: int, report: StepReport) -> Learned:
        parent = self.version
        version = parent + 1
        arrays = self._trainer.serving_parameters()
        parameters = save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})
        parameters_sha256 = hashlib.sha256(parameters).digest()
        snapshot = ParameterSnapshot(
            policy=self._schema.policy,
            epoch=self._epoch,
            version=version,
            parent=parent,
            schema_digest=self._schema.digest,
            parameters=parameters,
            parameters_sha256=parameters_sha256,
            slot=slot,
            slot_ms=self._slot_ms,
        )
        lineage = Version(
            policy=self._schema.policy,
            epoch=self._epoch,
            version=version,
            parent=parent,
            slot=slot,
            slot_ms=self._slot_ms,
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
        )
        lineage.state_sha256 = digest(self._trainer_state, {"lineage": encode(lineage).hex()})
        return Learned(slot, snapshot, lineage)

    def state(self) -> ChainState:
        """Everything that the next version depends on, and the last version as it was published."""
        tensors = {_TRAINER + name: array for name, array in self._trainer_state.items()}
        if self._latest is not None:
            tensors[_SNAPSHOT] = _as_bytes(encode(self._latest.snapshot))
            tensors[_VERSION] = _as_bytes(encode(self._latest.version))
        return ChainState(tensors, self._identity() | self._progress())

    def _identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with the settings, by name."""
        return {
            "layout": str(LAYOUT),
            "policy": self._schema.policy,
            "schema_digest": self._schema.digest.hex(),
            "trainer_settings": json.dumps(asdict(self._settings), sort_keys=True),
            "partitions": str(self._partitions),
            "slot_ms": str(self._slot_ms),
            "epoch": str(self._epoch),
        }

    def _progress(self) -> dict[str, str]:
        boundary = self._cutter.boundary
        return {
            "version": str(self.version),
            "slot": "" if self._cutter.last_slot is None else str(self._cutter.last_slot),
            "ledger": json.dumps(self._cutter.ledger),
            "next_positions": json.dumps(self._cutter.next_positions),
            "join_settings_digest": boundary.settings_digest.hex() if boundary else "",
            "computation": str(boundary.computation) if boundary else "",
        }

    @classmethod
    def restore(
        cls,
        schema: Schema,
        settings: TrainerSettings,
        partitions: int,
        slot_ms: int,
        state: ChainState,
        epoch: int = 1,
    ) -> "VersionChain":
        """Go on from a state; the records from its next positions on must be read again.

        Raises:
            BoundaryError: the state was made under other settings or another schema.
            CheckpointRefused: the state is incomplete or malformed.
        """
        chain = cls(schema, settings, partitions, slot_ms, epoch)
        for name, expected in chain._identity().items():
            seen = state.metadata.get(name)
            if seen is None:
                raise CheckpointRefused(
                    f"expected the entry {name!r}, seen none", Reason.REASON_MISSING_FIELD
                )
            if seen != expected:
                raise BoundaryError(_changed(name, expected, seen))
        try:
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
        boundary = None
        if entries["computation"]:
            boundary = Boundary(
                self._schema.policy,
                bytes.fromhex(entries["join_settings_digest"]),
                int(entries["computation"]),
            )
        self._cutter = SlotCutter(
            self._partitions,
            self._slot_ms,
            ledger=_integers(entries["ledger"]),
            next_positions=_integers(entries["next_positions"]),
            last_slot=int(entries["slot"]) if entries["slot"] else None,
            boundary=boundary,
        )
        self._trainer = Trainer.restore(
            self._schema,
            self._settings,
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
    return Decision.FromString(group.impression.decision.payload).arm == ARM_POLICY


def _as_bytes(value: bytes) -> np.ndarray:
    return np.frombuffer(value, dtype=np.uint8)


def _integers(text: str) -> list[int]:
    values: Any = json.loads(text)
    return [int(value) for value in values]


def _changed(name: str, expected: str, seen: str) -> str:
    if name == "trainer_settings":
        now, then = json.loads(expected), json.loads(seen)
        names = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
        name = "trainer settings " + ", ".join(names)
        expected = json.dumps({key: now.get(key) for key in names})
        seen = json.dumps({key: then.get(key) for key in names})
    return (
        f"the checkpoint was learned under other settings: {name} is {expected} now, "
        f"{seen} in the checkpoint; go back to it, or learn into topics and a folder of their own"
    )
