"""One file that holds a policy: its serving tensors, its schema, and which version it was.

A safetensors file, so that reading it runs nothing: eight bytes with the length of a header, the
header as JSON, the numbers. The header's metadata name the format, and hold the schema as TOML and
a sha256 over everything else in the file.
"""

import json
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from grade.v1.refused_pb2 import Reason

from policy.checkpoint import digest
from policy.durable_file import replace_file
from policy.errors import PolicyFileRefused, SchemaError, quoted
from policy.schema import Schema, parse_schema

Floats = npt.NDArray[np.float64]

FORMAT: Final = "grade policy, format 1"
LARGEST_BYTES: Final = 8 * 1024 * 1024
"""Largest file that is read: no larger snapshot can be published."""

_CHECKSUM = "sha256"
_NUMBERS = ("epoch", "version", "generation")
_TEXTS = ("format", "policy", "schema_toml", "schema_digest", _CHECKSUM)
_MOST_DIGITS = 18


class PolicyFile(NamedTuple):
    """What the file holds."""

    schema: Schema
    """Under which the tensors were learned; names the policy."""
    tensors: dict[str, Floats]
    """As `policy.initial.parameter_shapes` lists them; not checked beyond the checksum."""
    epoch: int
    version: int
    generation: int
    """Of the version that was written; 0 if it belonged to none."""


def write(path: Path, policy: PolicyFile) -> bytes:
    """Write a policy, so that a crash at any moment leaves no half of a file.

    Args:
        path: the file; replaced if it is there.
        policy: what to write.

    Returns:
        the sha256 that the file holds, over all the rest of it.

    Raises:
        FileNotWritten: the file, if there was one, is still there.
    """
    metadata = {
        "format": FORMAT,
        "policy": policy.schema.policy,
        "schema_toml": policy.schema.toml,
        "schema_digest": policy.schema.digest.hex(),
        **{name: str(getattr(policy, name)) for name in _NUMBERS},
    }
    tensors = {name: np.ascontiguousarray(policy.tensors[name]) for name in sorted(policy.tensors)}
    checksum = digest(tensors, metadata)
    content = safetensors.numpy.save(tensors, metadata={**metadata, _CHECKSUM: checksum.hex()})
    replace_file(path, content)
    return checksum


def read(path: Path) -> PolicyFile:
    """Read a policy and check that it is what was written.

    Raises:
        PolicyFileRefused: the file cannot be read, is too large, is no such file, or was altered.
    """
    content = _content(path)
    try:
        tensors = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = dict(header.get("__metadata__") or {})
    # The bytes come from outside, and what safetensors raises for bad ones is not documented.
    except Exception as error:
        raise PolicyFileRefused(
            f"{path}: expected a safetensors file, seen {len(content)} bytes that are none "
            f"({type(error).__name__}: {error})",
            Reason.REASON_UNDECODABLE,
        ) from None
    if metadata.get("format") != FORMAT:
        seen = quoted(metadata.get("format", "none"))
        raise PolicyFileRefused(
            f"{path}: expected a file of `grade export` ({FORMAT!r}), seen the format {seen}",
            Reason.REASON_WRONG_TYPE,
        )
    if metadata.keys() != {*_TEXTS, *_NUMBERS}:
        missing = {*_TEXTS, *_NUMBERS} - metadata.keys()
        raise PolicyFileRefused(
            f"{path}: expected the entries {', '.join(sorted([*_TEXTS, *_NUMBERS]))}, seen "
            + quoted(", ".join(sorted(metadata))),
            Reason.REASON_MISSING_FIELD if missing else Reason.REASON_UNKNOWN_FIELD,
        )
    expected = metadata.pop(_CHECKSUM)
    seen = digest(tensors, metadata).hex()
    if seen != expected:
        raise PolicyFileRefused(
            f"{path}: expected sha256 {quoted(expected)}, which it says of itself, seen {seen}: it "
            "was altered or damaged",
            Reason.REASON_CHECKSUM,
        )
    return PolicyFile(
        _schema(path, metadata), tensors, *(_number(path, name, metadata) for name in _NUMBERS)
    )


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise PolicyFileRefused(
            f"{path}: expected a policy file, seen: {error.strerror or error}",
            Reason.REASON_UNAVAILABLE,
        ) from None
    if len(content) > LARGEST_BYTES:
        raise PolicyFileRefused(
            f"{path}: expected at most {LARGEST_BYTES} bytes, seen more", Reason.REASON_TOO_LARGE
        )
    return content


def _schema(path: Path, metadata: dict[str, str]) -> Schema:
    try:
        schema = parse_schema(metadata["schema_toml"], where=f"schema in {path}")
    except SchemaError as error:
        raise PolicyFileRefused(
            f"{error}; the file was written by another build", error.reason
        ) from None
    for name, seen in (("policy", schema.policy), ("schema_digest", schema.digest.hex())):
        if metadata[name] != seen:
            raise PolicyFileRefused(
                f"{path}: expected {name} {quoted(metadata[name])}, seen {seen} in its schema as "
                "this build reads it",
                Reason.REASON_INCONSISTENT,
            )
    return schema


def _number(path: Path, name: str, metadata: dict[str, str]) -> int:
    text = metadata[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise PolicyFileRefused(
            f"{path}: {name}: expected a whole number, seen {quoted(text)}",
            Reason.REASON_OUT_OF_RANGE,
        )
    return int(text)
