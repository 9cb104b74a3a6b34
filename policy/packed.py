"""Reading lists of numbers at once: a packed list is its bytes on the wire, and so an array."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from grade.v1.decision_pb2 import Decision
from grade.v1.packed_pb2 import PackedDecision

from policy.fusion import Floats

FLOAT32: Final = np.dtype("<f4")
FLOAT64: Final = np.dtype("<f8")


def read_packed(payload: bytes) -> PackedDecision:
    """Read a serialized Decision.

    The wire allows the same list in several pieces, or number by number. What was written so is
    read as a Decision first.

    Args:
        payload: a serialized Decision.

    Raises:
        DecodeError: it is none.
    """
    packed = PackedDecision.FromString(payload)
    packed.DiscardUnknownFields()
    if packed.ByteSize() == len(payload):
        return packed
    decision = Decision.FromString(payload)
    decision.DiscardUnknownFields()
    return PackedDecision.FromString(decision.SerializeToString())


def numbers(kind: "np.dtype[np.floating]", rows: Sequence[bytes]) -> Floats:
    """All numbers of some packed lists, one after the other.

    Args:
        kind: of the numbers.
        rows: packed lists.

    Returns:
        [number] as float64.
    """
    return np.frombuffer(b"".join(rows), dtype=kind).astype(np.float64)
