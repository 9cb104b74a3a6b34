"""Broken snapshots, in the parameters topic and on disk."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.refused_pb2 import Reason
from safetensors.numpy import save

from serving.snapshot_file import FORMAT, write_snapshot
from stream.codec import encode
from tests.bad_input.case import Case
from tests.kafka import Produced
from tests.serving.parameters import EXAMPLE, Tensors, key_of, made_snapshot, made_tensors

FIRST_VERSION = 1_000
"""Of broken ones; so that all are above what is serving."""


@dataclass(frozen=True)
class BrokenSnapshot:
    """How the record of a version is made."""

    made: Callable[[int], Produced]


def _record(name: str, reason: "Reason.ValueType", *said: str) -> Any:
    def with_record(made: Callable[[int], Produced]) -> Case[BrokenSnapshot]:
        return Case(f"snapshot {name}", BrokenSnapshot(made), reason, said)

    return with_record


def _changed(
    name: str,
    change: Callable[[ParameterSnapshot], object],
    reason: "Reason.ValueType",
    *said: str,
) -> Case[BrokenSnapshot]:
    def made(version: int) -> Produced:
        snapshot = made_snapshot(version)
        key = key_of(snapshot)
        change(snapshot)
        return Produced(encode(snapshot), key)

    return Case(f"snapshot {name}", BrokenSnapshot(made), reason, said)


def _tensors(
    name: str, change: Callable[[dict[str, Any]], object], reason: "Reason.ValueType", *said: str
) -> Case[BrokenSnapshot]:
    def made(version: int) -> Produced:
        tensors: dict[str, Any] = dict(made_tensors(EXAMPLE, version))
        change(tensors)
        snapshot = made_snapshot(version, tensors=tensors)
        return Produced(encode(snapshot), key_of(snapshot))

    return Case(f"snapshot {name}", BrokenSnapshot(made), reason, said)


def _sealed(snapshot: ParameterSnapshot, parameters: bytes) -> None:
    snapshot.parameters = parameters
    snapshot.parameters_sha256 = hashlib.sha256(parameters).digest()


def _put(tensors: Tensors, name: str, value: float) -> None:
    tensors[name].flat[0] = value


def _under(key: bytes | None) -> Callable[[int], Produced]:
    return lambda version: Produced(encode(made_snapshot(version)), key)


def _bytes(value: Callable[[bytes], bytes]) -> Callable[[int], Produced]:
    def made(version: int) -> Produced:
        snapshot = made_snapshot(version)
        return Produced(value(encode(snapshot)), key_of(snapshot))

    return made


RECORDS: list[Case[BrokenSnapshot]] = [
    _record("cut short", Reason.REASON_UNDECODABLE, "decode: expected a serialized Param")(
        _bytes(lambda value: value[:-20])
    ),
    _record("of other bytes", Reason.REASON_UNDECODABLE, "seen 9 other bytes")(
        _bytes(lambda value: b"\xff" * 9)
    ),
    _record("of no bytes that is no tombstone", Reason.REASON_NULL_VALUE, "seen 0 bytes")(
        _bytes(lambda value: b"")
    ),
    _record("with an empty key", Reason.REASON_WRONG_KEY, "a key policy/epoch/version, seen b''")(
        _under(b"")
    ),
    _record("under a key of another form", Reason.REASON_WRONG_KEY, "seen b'example-1-7'")(
        _under(b"example-1-7")
    ),
    _record("under a negative version", Reason.REASON_WRONG_KEY, "seen b'example/1/-7'")(
        _under(b"example/1/-7")
    ),
    _record("under another version's key", Reason.REASON_WRONG_KEY, "of example/1/999999, seen")(
        _under(b"example/1/999999")
    ),
    _record(
        "under an absurd version",
        Reason.REASON_OUT_OF_RANGE,
        "key: expected an epoch of at most 99999999 and a version of at most 999999999999",
        "version 18446744073709551615",
    )(_under(f"example/1/{2**64 - 1}".encode())),
    _changed(
        "of another policy",
        lambda s: setattr(s, "policy", "another"),
        Reason.REASON_WRONG_KEY,
        "seen another/1/",
    ),
    _changed(
        "whose parameters are not those of the checksum",
        lambda s: setattr(s, "parameters", s.parameters[:-1] + b"\x55"),
        Reason.REASON_CHECKSUM,
        "checksum: expected sha256",
    ),
    _changed(
        "without a checksum",
        lambda s: s.ClearField("parameters_sha256"),
        Reason.REASON_CHECKSUM,
        "expected sha256 none of the parameters",
    ),
    _changed(
        "of an unknown schema",
        lambda s: setattr(s, "schema_digest", b"\xab" * 32),
        Reason.REASON_UNKNOWN_SCHEMA,
        "schema: expected",
        "seen abababababababab",
    ),
    _changed(
        "of a slot before all slots",
        lambda s: setattr(s, "slot", -2),
        Reason.REASON_OUT_OF_RANGE,
        "version: expected a slot of at least -1",
        "seen slot -2",
    ),
    _changed(
        "of a slot that never ends",
        lambda s: setattr(s, "slot_ms", 2**62),
        Reason.REASON_OUT_OF_RANGE,
        "of at most 86400000 ms, seen slot",
    ),
    _changed(
        "without parameters",
        lambda s: _sealed(s, b""),
        Reason.REASON_UNDECODABLE,
        "tensors: expected a safetensors file, seen 0 bytes",
    ),
    _changed(
        "with parameters cut short",
        lambda s: _sealed(s, s.parameters[:-8]),
        Reason.REASON_UNDECODABLE,
        "tensors: expected a safetensors file",
    ),
    _changed(
        "whose header lies about its length",
        lambda s: _sealed(s, (2**63).to_bytes(8, "little") + s.parameters[8:]),
        Reason.REASON_UNDECODABLE,
        "tensors: expected a safetensors file",
    ),
    _tensors(
        "with a tensor too few",
        lambda t: t.pop("gate"),
        Reason.REASON_MISSING_FIELD,
        "tensors: expected the tensors",
        "seen none named gate",
    ),
    _tensors(
        "with a tensor too many",
        lambda t: t.update(extra=np.zeros(3)),
        Reason.REASON_UNKNOWN_FIELD,
        "seen further ones named extra",
    ),
    _tensors(
        "of whole numbers",
        lambda t: t.update(gate=np.zeros(1, dtype=np.int64)),
        Reason.REASON_WRONG_TYPE,
        "expected gate of float64[1], seen int64[1]",
    ),
    _tensors(
        "with a tensor of another shape",
        lambda t: t.update(feature_mean=np.zeros(4)),
        Reason.REASON_WRONG_DIMENSION,
        "expected feature_mean of float64[3], seen float64[4]",
    ),
    _tensors(
        "with a scalar for a matrix",
        lambda t: t.update(mean_weight=np.zeros(())),
        Reason.REASON_WRONG_DIMENSION,
        "mean_weight of float64[3, 8], seen float64[]",
    ),
    _tensors(
        "with a NaN",
        lambda t: _put(t, "hidden0_weight", np.nan),
        Reason.REASON_NOT_FINITE,
        "finite: expected finite numbers in hidden0_weight, seen nan at [0, 0]",
    ),
    _tensors(
        "with an infinity",
        lambda t: _put(t, "mean_bias", -np.inf),
        Reason.REASON_NOT_FINITE,
        "finite numbers in mean_bias, seen -inf at [0]",
    ),
    _tensors(
        "with a negative scale",
        lambda t: _put(t, "feature_scale", -1.0),
        Reason.REASON_OUT_OF_RANGE,
        "bounds: expected feature_scale in [1e-30, 1e+30], seen [-1,",
    ),
    _tensors(
        "with an absurd weight",
        lambda t: _put(t, "hidden1_weight", 1e300),
        Reason.REASON_OUT_OF_RANGE,
        "bounds: expected hidden1_weight in [-1000, 1000]",
    ),
    _tensors(
        "whose logits no number holds",
        lambda t: t.update(hidden0_weight=np.full((8, 3), 999.0)),
        Reason.REASON_OUT_OF_RANGE,
        "bounds: expected logits up to 100000, seen",
    ),
]
"""Records of the parameters topic."""

LOADED = [
    _changed(
        "of version 0",
        lambda s: setattr(s, "version", 0),
        Reason.REASON_OUT_OF_RANGE,
        "epoch and version of at least 1",
        "seen epoch 1, version 0",
    ),
    _changed(
        "that names another policy",
        lambda s: setattr(s, "policy", "another"),
        Reason.REASON_UNKNOWN_POLICY,
        "policy: expected 'example', seen 'another'",
    ),
    _tensors(
        "with too many hidden units",
        lambda t: t.update(hidden0_weight=np.zeros((4_097, 3))),
        Reason.REASON_OUT_OF_RANGE,
        "expected 1 to 4096 hidden units, seen 4097",
    ),
]
"""What the key of a record would tell before, or what is too large for a topic."""


def _file(path: Path, content: Callable[[bytes], bytes]) -> None:
    write_snapshot(path, made_snapshot(1))
    path.write_bytes(content(path.read_bytes()))


def _on_disk(
    name: str, make: Callable[[Path], object], reason: "Reason.ValueType", *said: str
) -> "Case[Callable[[Path], object]]":
    return Case(f"snapshot file {name}", make, reason, said)


_SEALED_JUNK = FORMAT + hashlib.sha256(b"\xff\xff").digest() + b"\xff\xff"

FILES = [
    _on_disk(
        "cut short",
        lambda p: _file(p, lambda content: content[:-20]),
        Reason.REASON_CHECKSUM,
        "to match its checksum, seen",
    ),
    _on_disk(
        "that is empty",
        lambda p: p.write_bytes(b""),
        Reason.REASON_UNDECODABLE,
        "to begin with b'grade last good snapshot, format 1",
        "seen b''",
    ),
    _on_disk(
        "of another format",
        lambda p: _file(p, lambda content: content.replace(b"format 1", b"format 9", 1)),
        Reason.REASON_UNDECODABLE,
        "format 9",
    ),
    _on_disk(
        "with a sound checksum of junk",
        lambda p: p.write_bytes(_SEALED_JUNK),
        Reason.REASON_UNDECODABLE,
        "to hold a ParameterSnapshot",
    ),
    _on_disk(
        "that is a folder",
        lambda p: p.mkdir(),
        Reason.REASON_UNAVAILABLE,
        "to be readable, seen Is a directory",
    ),
    _on_disk(
        "that is safetensors",
        lambda p: p.write_bytes(save({"gate": np.zeros(1)})),
        Reason.REASON_UNDECODABLE,
        "to begin with",
    ),
]
