"""How versions are shown: as a table, and one by one with everything that is known of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from grade.v1.parameters_pb2 import ParameterSnapshot, Version
from rich.table import Table

from monitor.versions import FIGURES, mean_weights
from policy.schema import Schema
from stream.lineage import Covered, Lineage, Recorded, is_of, name_of, parent_id
from stream.parameters import BEFORE_ALL, VersionId


@dataclass(frozen=True, slots=True)
class Known:
    """What the topics say, and the schemas to read it by."""

    lineage: Lineage
    snapshots: Mapping[VersionId, ParameterSnapshot]
    schemas: Mapping[int, Schema]
    """By generation."""

    def schema_of(self, version: Version) -> Schema | None:
        """Schema of a version's generation, if known."""
        return self.schemas.get(version.generation)

    def weights(self, version: Version) -> dict[str, float]:
        """Mean fusion weights by objective."""
        return mean_weights(version, self.schema_of(version))

    def kept(self, recorded: Recorded) -> ParameterSnapshot | None:
        """Snapshot of a version, if the parameters topic still has it."""
        snapshot = self.snapshots.get(recorded.id)
        return snapshot if is_of(snapshot, recorded.version) else None


def table(known: Known, listed: Sequence[Recorded]) -> Table:
    """The list as people read it, the newest last."""
    objectives = " ".join(dict.fromkeys(name for x in listed for name in known.weights(x.version)))
    shown = Table(title=f"policy {known.lineage.policy}", title_justify="left")
    for name in ("version", "from", "gen", "slot begins (UTC)"):
        shown.add_column(name, no_wrap=True)
    for name in ("groups", "informative", "reward", "KL", "concentration", "gate"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column(f"mean weights\n{objectives}")
    shown.add_column("impressions learned from\npartition:offsets")
    shown.add_column("snapshot", no_wrap=True)
    for each in listed:
        version = each.version
        informative = version.informative_groups / version.groups if version.groups else 0.0
        shown.add_row(
            name_of(each.id),
            _parent(version),
            str(version.generation or "-"),
            _slot(version),
            str(version.groups),
            f"{informative:.0%}",
            f"{version.reward:.4f}",
            f"{version.kl:.2e}",
            f"{version.concentration:.1f}",
            f"{version.gate:.2f}",
            " ".join(f"{weight:.3f}" for weight in version.mean_weights) or "-",
            _covered(known.lineage.covered(version)),
            "kept" if known.kept(each) else "gone",
        )
    return shown


def as_json(known: Known, recorded: Recorded) -> dict[str, Any]:
    """Everything of one version, in plain types; a number that is not finite is null."""
    version = recorded.version
    covered = known.lineage.covered(version)
    return {
        "id": name_of(recorded.id),
        "policy": version.policy,
        "epoch": version.epoch,
        "version": version.version,
        "parent": _parent(version),
        "generation": version.generation,
        "slot": version.slot,
        "slot_ms": version.slot_ms,
        "slot_begins": _slot(version),
        "written": _utc(recorded.timestamp_ms),
        "groups": version.groups,
        "informative_groups": version.informative_groups,
        **{
            name: value if math.isfinite(value := getattr(version, name)) else None
            for name in FIGURES
            if not name.endswith("groups")
        },
        "mean_weights": known.weights(version),
        "learned_from": None if covered is None else [each._asdict() for each in covered],
        "ledger": {str(each.partition): each.offset for each in version.ledger},
        "parameters_sha256": version.parameters_sha256.hex(),
        "state_sha256": version.state_sha256.hex(),
        "lineage_offset": recorded.offset,
        "snapshot_kept": known.kept(recorded) is not None,
    }


def rows(name: str, value: Any) -> list[tuple[str, str]]:
    """One entry of `as_json` as rows of name and text, for people."""
    words = name.replace("_", " ")
    if name == "learned_from":
        if value is None:
            return [(words, "not known: the versions topic no longer has its parent")]
        return [
            (f"{words}, partition {each['partition']}", _offsets(Covered(**each))) for each in value
        ]
    if isinstance(value, dict):
        of = ", partition " if name == "ledger" else " "
        return [(f"{words}{of}{key}", figure(each)) for key, each in value.items()]
    return [(words, figure(value) if isinstance(value, float) else str(value))]


def _parent(version: Version) -> str:
    parent = parent_id(version)
    return "baseline" if parent == BEFORE_ALL else name_of(parent)


def _slot(version: Version) -> str:
    if version.slot < 0:
        return "taken over"
    return _utc(version.slot * version.slot_ms)


def _utc(milliseconds: int) -> str:
    try:
        when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{milliseconds} ms"
    return when.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")


def _covered(covered: Sequence[Covered] | None) -> str:
    if covered is None:
        return "not known"
    new = [each for each in covered if each.up_to > each.after]
    return " ".join(f"{each.partition}:{_offsets(each)}" for each in new) or "none"


def _offsets(covered: Covered) -> str:
    """Offsets of the impressions of one partition; not every one of them became a group."""
    first = covered.after + 1
    if covered.up_to < first:
        return "none"
    return str(first) if covered.up_to == first else f"{first}-{covered.up_to}"


def figure(value: float | None) -> str:
    """A figure for people; `-` for none."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.6g}"
