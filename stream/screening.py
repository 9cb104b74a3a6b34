"""Reading the impressions of a batch: the numbers of many are checked at once.

Which impressions are valid is for validation.py to say. Here those are found that would pass there
beyond doubt; all others, and what is close to a limit, are asked about one by one. So nothing here
has to be complete, and every refusal is explained in one place.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY
from grade.v1.packed_pb2 import PackedImpression

from policy.dirichlet import Floats, log_density
from policy.initial import LARGEST_FEATURE
from policy.packed import FLOAT32, FLOAT64, read_packed
from stream.checks import LATEST_MS, MOST_MEMBERS
from stream.codec import encode, partitions_for
from stream.decision_checks import (
    DENSITY_TOLERANCE,
    FLOAT32_TOLERANCE,
    LARGEST_ALPHA,
    SIMPLEX_TOLERANCE,
)
from stream.join_records import Record, SoundImpression
from stream.terms import Terms
from stream.validation import (
    LONGEST_ITEM_ID,
    LONGEST_REQUEST_ID,
    MOST_FUSED,
    MOST_SHOWN,
    Refusal,
    read_impression,
)

FEWEST: Final = 6
"""Records from which on it is cheaper to look at them together."""

BEYOND_DOUBT: Final = 0.999
"""Share of a tolerance that is taken up at most: sums may be rounded otherwise there."""

_ONE_BYTE: Final = 0x80
"""Least varint that takes two bytes."""


class _Lists(NamedTuple):
    """The packed lists of numbers of an impression and its decision."""

    features: bytes
    alpha: bytes
    weights: bytes
    log_densities: bytes
    scores: bytes
    unshown_scores: bytes


class _Shape(NamedTuple):
    """Dimensions; impressions of one shape make rectangular arrays. Lists by their bytes."""

    arm: int
    items: int
    features: int
    alpha: int
    weights: int
    log_densities: int
    scores: int
    unshown_scores: int


class _Found(NamedTuple):
    """An impression of which only the numbers are left to be checked."""

    row: int
    request_id: str
    lists: _Lists


class ImpressionReader:
    """Reads the impressions of one partition and one generation.

    Args:
        terms: of the generation.
        partition: the partition they are read from.
        partitions: how many partitions there are.
    """

    def __init__(self, terms: Terms, partition: int, partitions: int) -> None:
        schema = terms.schema
        self.terms = terms
        """Of the generation."""
        self._schema = schema
        self._partition = partition
        self._partitions = partitions
        self._max_bytes = terms.settings.max_record_bytes
        self._accepted = terms.accepted
        self._digests = {schema.digest, *terms.accepted}
        self._floors = schema.floors()
        self._baseline = schema.baseline()
        self._least = np.where(self._floors > 0, self._floors - BEYOND_DOUBT * FLOAT32_TOLERANCE, 0)

    def read(self, records: Sequence[Record]) -> list[SoundImpression | Refusal]:
        """[record] what is needed of an impression, or why it is refused; see `read_impression`.

        Args:
            records: of the impression log, neither ticks nor boundaries.
        """
        sound = self._sound(records) if len(records) >= FEWEST else [None] * len(records)
        return [
            found or self._read_one(record) for found, record in zip(sound, records, strict=True)
        ]

    def _read_one(self, record: Record) -> SoundImpression | Refusal:
        read = read_impression(
            self._schema,
            record,
            self._partition,
            self._partitions,
            max_bytes=self._max_bytes,
            accepted=self._accepted,
        )
        if isinstance(read, Refusal):
            return read
        decision = read_packed(read.decision.payload)
        numbers = np.array([*read.scores, *read.unshown_scores], FLOAT32)
        weights = b"" if decision.arm == ARM_HOLDOUT else decision.weights
        return SoundImpression(read.request_id, encode(read), numbers.tobytes(), weights)

    def _sound(self, records: Sequence[Record]) -> list[SoundImpression | None]:
        """[record] what is needed of an impression that is sound beyond doubt; None: ask."""
        keys = [record.key or b"" for record in records]
        placed = partitions_for(keys, self._partitions)
        alike: dict[_Shape, list[_Found]] = {}
        sound: list[SoundImpression | None] = [None] * len(records)
        for row, record in enumerate(records):
            impression = _decoded(record, self._max_bytes)
            if impression is None or placed[row] != self._partition:
                continue
            items = impression.item_ids[:]
            if self._belongs(impression, keys[row]) and _are_shown(items, impression.positions):
                decision, lists = impression.decision.payload, _lists(impression)
                shape = _Shape(decision.arm, len(items), *map(len, lists))
                members = _members_of(shape, self._schema.n_features, self._schema.n_objectives)
                if decision.executed < members:
                    found = _Found(row, impression.request_id, lists)
                    alike.setdefault(shape, []).append(found)
        for shape, same in alike.items():
            passed = self._numbers_pass(shape, [each.lists for each in same])
            for (row, request_id, lists), good in zip(same, passed.tolist(), strict=True):
                if good:
                    scores = lists.scores + lists.unshown_scores
                    weights = b"" if shape.arm == ARM_HOLDOUT else lists.weights
                    value = records[row].value or b""
                    sound[row] = SoundImpression(request_id, value, scores, weights)
        return sound

    def _belongs(self, impression: PackedImpression, key: bytes) -> bool:
        """Whether names and times are in order."""
        decision, policy = impression.decision.payload, self._schema.policy
        request_id, unit_id = impression.request_id, decision.unit_id
        return (
            impression.policy == policy == decision.policy
            and bool(request_id)
            and request_id == decision.request_id
            and request_id.encode() == key
            and _is_plain(request_id, LONGEST_REQUEST_ID)
            and bool(unit_id)
            and _is_plain(unit_id, LONGEST_REQUEST_ID)
            and decision.schema_digest in self._digests
            and (decision.epoch == 0) == (decision.version == 0)
            and 0 <= impression.shown_at_ms <= LATEST_MS
        )

    def _numbers_pass(self, shape: _Shape, lists: Sequence[_Lists]) -> npt.NDArray[np.bool_]:
        """[impression] whether all numbers are in order."""
        features = _table(FLOAT32, [each.features for each in lists])
        passed = (np.abs(features) <= LARGEST_FEATURE).all(axis=1)
        passed &= np.isfinite(_table(FLOAT32, [each.scores for each in lists])).all(axis=1)
        if shape.unshown_scores:
            unshown = _table(FLOAT32, [each.unshown_scores for each in lists])
            passed &= np.isfinite(unshown).all(axis=1)
        rows = _table(FLOAT32, [each.weights for each in lists])
        weights = rows.astype(np.float64).reshape(len(rows), -1, self._schema.n_objectives)
        passed &= np.isfinite(weights).all(axis=(1, 2))
        passed &= (weights >= self._least).all(axis=(1, 2))
        off = np.abs(weights.sum(axis=-1) - 1)
        passed &= (off <= BEYOND_DOUBT * SIMPLEX_TOLERANCE).all(axis=1)
        if shape.alpha:
            return self._densities_pass(passed, weights, lists)
        far = np.abs(weights[:, 0, :] - self._baseline)
        return np.asarray(passed & (far <= BEYOND_DOUBT * FLOAT32_TOLERANCE).all(axis=1))

    def _densities_pass(
        self,
        passed: npt.NDArray[np.bool_],
        weights: Floats,
        lists: Sequence[_Lists],
    ) -> npt.NDArray[np.bool_]:
        """[impression] whether alpha and densities are in order, where all else is."""
        alpha = _table(FLOAT64, [each.alpha for each in lists])
        seen = _table(FLOAT64, [each.log_densities for each in lists])
        rows = np.flatnonzero(passed & ((alpha > 0) & (alpha <= LARGEST_ALPHA)).all(axis=1))
        right = log_density(weights[rows], alpha[rows, None, :], self._floors)
        off = np.abs(seen[rows] - right)
        near = off <= BEYOND_DOUBT * DENSITY_TOLERANCE * np.maximum(1.0, np.abs(right))
        result = np.zeros(len(passed), dtype=np.bool_)
        result[rows] = near.all(axis=1)
        return result


def _decoded(record: Record, max_bytes: int) -> PackedImpression | None:
    """The impression, if its bytes can be read in one way only."""
    value = record.value
    if not value or record.tick or len(value) + len(record.key or b"") > max_bytes:
        return None
    try:
        impression = PackedImpression.FromString(value)
    except DecodeError:
        return None
    # A field that came twice, or in another encoding, is not read as it should be: it is missing
    # here, or among what is unknown.
    impression.DiscardUnknownFields()
    return impression if encode(impression) == value else None


def _lists(impression: PackedImpression) -> _Lists:
    decision = impression.decision.payload
    return _Lists(
        decision.features,
        decision.alpha,
        decision.weights,
        decision.log_densities,
        impression.scores,
        impression.unshown_scores,
    )


@lru_cache(maxsize=4096)
def _members_of(shape: _Shape, features: int, objectives: int) -> int:
    """How many members its group has; 0 if the shape is not as a schema wants it.

    Args:
        shape: the shape.
        features: how many the schema has.
        objectives: how many the schema has.
    """
    members, half_a_member = divmod(shape.weights, 4 * objectives)
    unshown, half_an_item = divmod(shape.unshown_scores, 4 * objectives)
    right = (
        not half_a_member
        and not half_an_item
        and members <= MOST_MEMBERS
        and shape.features == 4 * features
        and shape.scores == 4 * objectives * shape.items
        and members * (shape.items + unshown) * objectives <= MOST_FUSED
    )
    lists = shape.arm, shape.alpha, shape.log_densities
    policy, holdout = (ARM_POLICY, 8 * objectives, 8 * members), (ARM_HOLDOUT, 0, 0)
    right = right and (lists == policy or (lists == holdout and members == 1))
    return members if right else 0


def _are_shown(items: Sequence[str], positions: bytes) -> bool:
    """Whether items and positions are in order."""
    return (
        0 < len(items) <= MOST_SHOWN
        and len(set(items)) == len(items) == len(positions) == len(set(positions))
        and max(positions) < _ONE_BYTE
        and "" not in items
        and _is_plain("".join(items), LONGEST_ITEM_ID)
    )


def _is_plain(text: str, longest: int) -> bool:
    """Whether names are short enough, whatever the alphabet, and have no control characters."""
    return len(text) <= longest // 4 and text.isprintable()


def _table(kind: "np.dtype[np.floating]", rows: Sequence[bytes]) -> Floats:
    """[row, number] of rows of equal length."""
    return np.frombuffer(b"".join(rows), dtype=kind).reshape(len(rows), -1)
