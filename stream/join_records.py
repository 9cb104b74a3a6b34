"""What goes into the join of one partition and what comes out of it."""

import enum
import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple

from policy.errors import SettingsError

NEVER = -(2**63)
"""Time of a log of which nothing has been read: the smallest int64."""


class Log(enum.Enum):
    """The two input logs; the value is the topic's name without prefix and version."""

    IMPRESSIONS = "impressions"
    CONVERSIONS = "conversions"


class Record(NamedTuple):
    """One record of an input log, as it was fetched."""

    offset: int
    timestamp_ms: int
    """Milliseconds since 1970 UTC: the broker's stamp, or the event's own (CreateTime)."""
    key: bytes | None
    value: bytes | None
    tick: bool
    """Whether the record carries the tick's header."""
    boundary: bool = False
    """Whether it carries the header of a boundary: its value is the Generation that begins."""

    @property
    def is_tick(self) -> bool:
        """Whether it only carries the log's time forward."""
        return self.tick and not self.value

    @property
    def is_boundary(self) -> bool:
        """Whether a generation may begin here; whether its value is one is to be seen."""
        return self.boundary and not self.is_tick


class Cursor(NamedTuple):
    """A position in both input logs."""

    impression_offset: int
    conversion_offset: int


class Loss(NamedTuple):
    """What was given up when a new owner could not go on where the last one had stopped."""

    impressions: int
    """Impressions that were not decided and are gone."""
    conversions: int
    prev: int
    """Offset of the last impression whose group had been written, -1 if there is none."""
    done: Cursor
    """Everything before had been decided and written."""
    close_time_ms: int
    """No later group closes before it, milliseconds since 1970 UTC; NEVER if nothing had been
    closed."""
    segment: int
    """Number of the start that records the loss."""


class SoundImpression(NamedTuple):
    """What the join needs of a valid impression before its group leaves."""

    request_id: str
    value: bytes
    """The impression as its group holds it: as if it had been serialized here."""
    scores: bytes
    """[candidate, objective] float32, little-endian: of the items shown, then of the unshown."""
    weights: bytes
    """[member, objective] likewise; empty in the holdout arm, which earns no rewards."""


class Kind(enum.Enum):
    """Which topic an output goes to."""

    LATE = "late"
    ORPHANS = "orphans"
    DEAD_LETTERS = "dead-letters"
    REWARD_GROUPS = "reward-groups"


class Output(NamedTuple):
    """One record to be written, always to the partition that the inputs have."""

    kind: Kind
    key: bytes
    value: bytes


class Step(NamedTuple):
    """What one batch led to. Write in this order, `side` acknowledged before the others."""

    side: list[Output]
    groups: list[Output]
    progress: list[Output]


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """How long the join waits and what it takes: what decides, and so belongs to a generation.

    Raises:
        SettingsError: a number is out of its range.
    """

    window_ms: int
    """Attribution window W, at least 1."""
    early_ms: int
    """Early allowance E: how much earlier than its impression a conversion may be logged."""
    late_ms: int
    """Late horizon L, W ≤ L ≤ 2W + E: up to here a conversion is late, beyond it an orphan."""
    max_record_bytes: int = 1_000_000
    """Key and value of an input record may have so many bytes together."""

    def __post_init__(self) -> None:
        longest = 2 * self.window_ms + self.early_ms
        _check_range("window_ms", self.window_ms, 1)
        _check_range("early_ms", self.early_ms, 0)
        _check_range("late_ms", self.late_ms, self.window_ms, longest)
        _check_range("max_record_bytes", self.max_record_bytes, 1)

    @property
    def max_request_bytes(self) -> int:
        """How many bytes the conversions of one request may have within D_c, as a group holds them.

        So the size of a group is bounded, and no request can stop a partition.
        """
        return 4 * self.max_record_bytes

    @property
    def repeat_ms(self) -> int:
        """D = W + E: an impression within it of a valid one of its request is a duplicate."""
        return self.window_ms + self.early_ms

    @property
    def conversion_repeat_ms(self) -> int:
        """D_c = L + E: the same for a conversion of its request and conversion_id."""
        return self.late_ms + self.early_ms

    def digest(self, schema_digest: bytes) -> bytes:
        """sha256 over everything that decides what the join writes.

        Args:
            schema_digest: sha256 of the policy's schema.
        """
        content = {
            "window_ms": self.window_ms,
            "early_ms": self.early_ms,
            "late_ms": self.late_ms,
            "max_record_bytes": self.max_record_bytes,
            "schema": schema_digest.hex(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


@dataclass(frozen=True, slots=True)
class JoinLimits:
    """What decides only when the join reads and writes, never what.

    Raises:
        SettingsError: a number is out of its range.
    """

    max_open_groups: int = 100_000
    """While so many groups are open, impressions wait."""
    progress_step_ms: int = 250
    """Progress is written whenever another multiple of this has been reached; should divide the
    learner's slot."""

    def __post_init__(self) -> None:
        _check_range("max_open_groups", self.max_open_groups, 1)
        _check_range("progress_step_ms", self.progress_step_ms, 1)


def _check_range(name: str, seen: int, least: int, most: int | None = None) -> None:
    if seen < least or (most is not None and seen > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise SettingsError(f"{name}: expected {limits}, seen {seen}")
