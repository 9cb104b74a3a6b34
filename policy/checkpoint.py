"""Checkpoints on disk: one safetensors file each, durable before it counts, checked when read.

A file holds named tensors, metadata, and the sha256 of both. It is replaced whole and durably
(durable_file.py): after a crash there is the old file or the new one, never half of one.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from grade.v1.refused_pb2 import Reason
from safetensors import safe_open
from safetensors.numpy import save

from policy.durable_file import replace_file
from policy.errors import CheckpointRefused, quoted

Tensors = dict[str, npt.NDArray[np.generic]]

_STEM = re.compile(r"\d{8}-\d{12}")
_CHECKSUM = "sha256"

AHEAD = ".ahead"
"""Suffix of a checkpoint that was set aside: ahead of what could be published."""


class Checkpoint(NamedTuple):
    """What a checkpoint file holds."""

    tensors: Tensors
    metadata: dict[str, str]


def file_name(epoch: int, version: int) -> str:
    """Name of a version's checkpoint; names sort as versions do.

    >>> file_name(1, 42)
    '00000001-000000000042.ckpt'
    """
    return f"{epoch:08d}-{version:012d}.ckpt"


def write(
    folder: Path,
    tensors: Mapping[str, npt.NDArray[np.generic]],
    metadata: Mapping[str, str],
    keep: int,
) -> Path:
    """Write a checkpoint durably, then delete the oldest ones and what a crash left half-written.

    Only checkpoints up to this one count and go: where a folder holds later ones, which could not
    be used, this one and those just before it stay all the same. A folder has one writer.

    Args:
        folder: where the checkpoints are; made if it is not there.
        tensors: by name.
        metadata: text by name; `epoch` and `version`, whole numbers, name the file.
        keep: checkpoints that stay, at least 1, and as many that were set aside.

    Returns:
        the file, which is durable.

    Raises:
        ValueError: fewer than one checkpoint is to be kept.
        FileNotWritten: the disk does not take it; every checkpoint that was there still is.
    """
    if keep < 1:
        raise ValueError(f"expected at least 1 checkpoint to be kept, seen {keep}")
    path = folder / file_name(int(metadata["epoch"]), int(metadata["version"]))
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    checksum = digest(contiguous, metadata).hex()
    replace_file(path, save(contiguous, metadata={**metadata, _CHECKSUM: checksum}))
    up_to_this = [each for each in _all(folder) if each.name <= path.name]
    half_written = (each for each in folder.glob("*.tmp") if _STEM.match(each.name))
    for old in (*up_to_this[:-keep], *_all(folder, AHEAD)[:-keep], *half_written):
        old.unlink(missing_ok=True)
    return path


def load(file: Path) -> Checkpoint:
    """Read a checkpoint and check it against its sha256.

    Raises:
        CheckpointRefused: the file is not there, not a checkpoint, or not what was written.
    """
    try:
        with file.open("rb") as found:
            found.read(1)
        with safe_open(str(file), framework="numpy") as opened:
            metadata: dict[str, str] = dict(opened.metadata() or {})
            tensors: Tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except OSError as error:
        raise CheckpointRefused(
            f"{file}: expected a checkpoint, seen: {error.strerror or error}",
            Reason.REASON_UNAVAILABLE,
        ) from None
    # The file comes from outside, and what safetensors raises for bad ones is not documented.
    except Exception as error:
        raise CheckpointRefused(
            f"{file}: expected a checkpoint, seen: {error}", Reason.REASON_UNDECODABLE
        ) from None
    expected = metadata.pop(_CHECKSUM, None)
    if expected is None:
        raise CheckpointRefused(
            f"{file}: expected an entry {_CHECKSUM}, seen none", Reason.REASON_MISSING_FIELD
        )
    seen = digest(tensors, metadata).hex()
    if seen != expected:
        raise CheckpointRefused(
            f"{file}: expected sha256 {quoted(expected)}, seen {seen}", Reason.REASON_CHECKSUM
        )
    return Checkpoint(tensors, metadata)


def digest(
    tensors: Mapping[str, npt.NDArray[np.generic]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """sha256 over named tensors and metadata, in the order of the names.

    Args:
        tensors: by name.
        metadata: text by name; part of the digest.
    """
    state = hashlib.sha256(json.dumps(dict(metadata or {}), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = np.asarray(tensors[name], order="C")
        state.update(json.dumps([name, tensor.dtype.str, tensor.shape]).encode())
        state.update(tensor.tobytes())
    return state.digest()


def _all(folder: Path, suffix: str = ".ckpt") -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix == suffix)
    return sorted(path for path in found if _STEM.fullmatch(path.stem))
