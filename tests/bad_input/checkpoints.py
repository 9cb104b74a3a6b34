"""Broken checkpoint files: made from a sound one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from grade.v1.refused_pb2 import Reason
from safetensors.numpy import save

from policy import checkpoint
from stream.version_chain import ChainState
from tests.bad_input.case import Case

Break = Callable[[ChainState, Path], object]
"""Writes a broken file, given the state of a learner."""


def _raw(
    name: str, content: Callable[[bytes], bytes], reason: "Reason.ValueType", *said: str
) -> Case[Break]:
    """A sound file with other bytes."""

    def write(state: ChainState, path: Path) -> None:
        path.write_bytes(content(_file(state.tensors, state.metadata)))

    return Case(f"checkpoint {name}", write, reason, said)


def _tensors(
    name: str, change: Callable[[dict[str, Any]], object], reason: "Reason.ValueType", *said: str
) -> Case[Break]:
    """A file that is sound but for its tensors."""

    def write(state: ChainState, path: Path) -> None:
        tensors = {key: tensor.copy() for key, tensor in state.tensors.items()}
        change(tensors)
        path.write_bytes(_file(tensors, state.metadata))

    return Case(f"checkpoint {name}", write, reason, said)


def _entries(
    name: str, change: Callable[[dict[str, str]], object], reason: "Reason.ValueType", *said: str
) -> Case[Break]:
    """A file that is sound but for its entries."""

    def write(state: ChainState, path: Path) -> None:
        metadata = dict(state.metadata)
        change(metadata)
        path.write_bytes(_file(state.tensors, metadata))

    return Case(f"checkpoint {name}", write, reason, said)


def _file(tensors: dict[str, Any], metadata: dict[str, str]) -> bytes:
    sealed = {**metadata, "sha256": checkpoint.digest(tensors, metadata).hex()}
    return save({name: np.asarray(each, order="C") for name, each in tensors.items()}, sealed)


def _unsealed(state: ChainState, path: Path) -> None:
    path.write_bytes(save(state.tensors, dict(state.metadata)))


def _flipped(content: bytes) -> bytes:
    """One bit of the last tensor."""
    return content[:-1] + bytes([content[-1] ^ 1])


def _with_type(content: bytes, dtype: str) -> bytes:
    """A header that says another type of the same size for the first tensor of doubles."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(name for name, entry in header.items() if entry.get("dtype") == "F64")
    header[name]["dtype"] = dtype
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]


def _put(tensors: dict[str, Any], name: str, value: float) -> None:
    tensors[name].flat[0] = value


_WEIGHT = "trainer.learned.mean_weight"

CHECKPOINTS: list[Case[Break]] = [
    Case(
        "checkpoint that is not there",
        lambda state, path: None,
        Reason.REASON_UNAVAILABLE,
        ("expected a checkpoint, seen: No such file",),
    ),
    Case(
        "checkpoint that is a folder",
        lambda state, path: path.mkdir(),
        Reason.REASON_UNAVAILABLE,
        ("expected a checkpoint, seen: Is a directory",),
    ),
    Case(
        "checkpoint without a checksum",
        _unsealed,
        Reason.REASON_MISSING_FIELD,
        ("expected an entry sha256, seen none",),
    ),
    _raw("that is empty", lambda c: b"", Reason.REASON_UNDECODABLE, "expected a checkpoint, seen:"),
    _raw("cut short", lambda c: c[:-100], Reason.REASON_UNDECODABLE, "expected a checkpoint"),
    _raw(
        "of other bytes",
        lambda c: b"\xff" * 200,
        Reason.REASON_UNDECODABLE,
        "expected a checkpoint",
    ),
    _raw(
        "whose header lies about its length",
        lambda c: (2**40).to_bytes(8, "little") + c[8:],
        Reason.REASON_UNDECODABLE,
        "expected a checkpoint",
    ),
    _raw("with a flipped bit", _flipped, Reason.REASON_CHECKSUM, "expected sha256", "seen"),
    _raw(
        "whose header says another type",
        lambda c: _with_type(c, "I64"),
        Reason.REASON_CHECKSUM,
        "expected sha256",
    ),
    _raw(
        "of a type that nobody knows",
        lambda c: _with_type(c, "F65"),
        Reason.REASON_UNDECODABLE,
        "expected a checkpoint",
    ),
    _tensors(
        "with a tensor too few",
        lambda t: t.pop(_WEIGHT),
        Reason.REASON_MISSING_FIELD,
        "learned.mean_weight: expected shape",
        "seen nothing",
    ),
    _tensors(
        "with a tensor of another shape",
        lambda t: t.update({_WEIGHT: np.zeros((2, 2))}),
        Reason.REASON_WRONG_DIMENSION,
        "learned.mean_weight: expected shape (3, 64), seen (2, 2)",
    ),
    _tensors(
        "with a tensor of single precision",
        lambda t: t.update({_WEIGHT: t[_WEIGHT].astype(np.float32)}),
        Reason.REASON_WRONG_TYPE,
        "learned.mean_weight: expected float64, seen float32",
    ),
    _tensors(
        "with a NaN",
        lambda t: _put(t, _WEIGHT, np.nan),
        Reason.REASON_NOT_FINITE,
        "learned.mean_weight: expected finite numbers",
    ),
    _tensors(
        "with an infinity",
        lambda t: _put(t, "trainer.scale.mean", np.inf),
        Reason.REASON_NOT_FINITE,
        "scale.mean: expected finite numbers",
    ),
    _tensors(
        "whose past has no features",
        lambda t: t.pop("trainer.past.features"),
        Reason.REASON_MISSING_FIELD,
        "past.features: expected beside the others, seen nothing",
    ),
    _tensors(
        "whose past has other objectives",
        lambda t: t.update({"trainer.past.signals": t["trainer.past.signals"][:, :2].copy()}),
        Reason.REASON_WRONG_DIMENSION,
        "past.signals: expected shape",
    ),
    _tensors(
        "whose past has negative lengths",
        lambda t: _put(t, "trainer.past.lengths", -3),
        Reason.REASON_OUT_OF_RANGE,
        "past.lengths: expected at least 1 item per request, seen -3",
    ),
    _tensors(
        "without its version",
        lambda t: t.pop("published.version"),
        Reason.REASON_UNDECODABLE,
        "expected the state of a learner, seen one that cannot be restored",
    ),
    _tensors(
        "whose version is no message",
        lambda t: t.update({"published.version": np.full(9, 0xFF, dtype=np.uint8)}),
        Reason.REASON_UNDECODABLE,
        "expected the state of a learner",
    ),
    _entries(
        "without an entry",
        lambda m: m.pop("layout"),
        Reason.REASON_MISSING_FIELD,
        "expected the entry 'layout', seen none",
    ),
    _entries(
        "whose ledger is no list",
        lambda m: m.update(ledger="7"),
        Reason.REASON_UNDECODABLE,
        "expected the state of a learner",
    ),
    _entries(
        "whose version is a word",
        lambda m: m.update(version="latest"),
        Reason.REASON_UNDECODABLE,
        "expected the state of a learner",
    ),
    _entries(
        "of another number of partitions",
        lambda m: m.update(partitions="7"),
        Reason.REASON_OTHER_SETTINGS,
        "learned elsewhere: partitions: expected 2, seen 7",
        "7 in the checkpoint",
    ),
    _entries(
        "of another layout",
        lambda m: m.update(layout="99"),
        Reason.REASON_OUT_OF_RANGE,
        "expected the entry 'layout' to be",
        "seen 99: of another build",
    ),
]
