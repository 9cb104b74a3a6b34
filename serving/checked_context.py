"""What a request must say before it is decided."""

import math
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from grade.v1.context_pb2 import Context
from grade.v1.decision_pb2 import Arm
from grade.v1.refused_pb2 import Reason

from policy.errors import InvalidContext, quoted
from policy.fusion import arm
from policy.initial import LARGEST_FEATURE
from policy.names import has_control_character
from policy.schema import Schema

LONGEST_NAME_BYTES: Final = 128
"""Of request_id and unit_id, in UTF-8."""


class CheckedContext(NamedTuple):
    """A context that may be decided."""

    context: Context
    encoded_id: bytes
    """Its request_id in UTF-8."""
    features: list[float]
    """[feature] as float32 numbers."""
    arm: "Arm.ValueType"
    """The arm of its unit."""


def check_context(context: Context, schema: Schema, where: str) -> CheckedContext:
    """Check a context.

    Args:
        context: as it came.
        schema: of the policy that is asked.
        where: path of the context in the call, for messages.

    Raises:
        InvalidContext: naming the first field that is wrong.
    """
    if context.policy != schema.policy:
        raise unknown_policy(context.policy, [schema.policy], f"{where}.policy")
    encoded_id = _check_name(context.request_id, where, "request_id")
    _check_name(context.unit_id, where, "unit_id")
    digest = context.schema_digest
    if digest and digest != schema.digest:
        raise InvalidContext(
            f"{where}.schema_digest",
            f"features ordered by the schema {schema.digest.hex()}, which is served",
            quoted(digest.hex()),
            Reason.REASON_UNKNOWN_SCHEMA,
        )
    features = context.features[:]
    if len(features) != schema.n_features:
        raise InvalidContext(
            f"{where}.features",
            f"{schema.n_features} numbers",
            str(len(features)),
            Reason.REASON_WRONG_DIMENSION,
        )
    # A sum of float32 numbers in float64 is finite iff all of them are.
    if (
        not math.isfinite(sum(features))
        or max(features) > LARGEST_FEATURE
        or min(features) < -LARGEST_FEATURE
    ):
        raise _wrong_feature(features, schema, where)
    return CheckedContext(context, encoded_id, features, arm(schema, context.unit_id))


def unknown_policy(policy: str, known: Collection[str], field: str) -> InvalidContext:
    """The refusal of a policy's name.

    Args:
        policy: the name that was asked for.
        known: names of the policies that would have been right.
        field: path of the name in the call.
    """
    reason = Reason.REASON_UNKNOWN_POLICY if policy else Reason.REASON_MISSING_FIELD
    return InvalidContext(field, " or ".join(map(repr, known)), quoted(policy), reason)


def _check_name(name: str, where: str, field: str) -> bytes:
    encoded = name.encode()
    if not 1 <= len(encoded) <= LONGEST_NAME_BYTES:
        raise InvalidContext(
            f"{where}.{field}",
            f"1 to {LONGEST_NAME_BYTES} bytes of UTF-8",
            f"{len(encoded)} bytes, beginning {name[:16]!r}" if encoded else "none",
            Reason.REASON_OUT_OF_RANGE if encoded else Reason.REASON_MISSING_FIELD,
        )
    if not name.isprintable() and has_control_character(name):
        raise InvalidContext(
            f"{where}.{field}", "no control characters", repr(name), Reason.REASON_BAD_NAME
        )
    return encoded


def _wrong_feature(features: Sequence[float], schema: Schema, where: str) -> InvalidContext:
    index = next(i for i, x in enumerate(features) if not abs(x) <= LARGEST_FEATURE)
    name, seen = schema.features[index].name, features[index]
    kind, reason = "finite number", Reason.REASON_NOT_FINITE
    if math.isfinite(seen):
        kind = f"number in [{-LARGEST_FEATURE:g}, {LARGEST_FEATURE:g}]"
        reason = Reason.REASON_OUT_OF_RANGE
    return InvalidContext(
        f"{where}.features[{index}]", f"a {kind} for {name!r}", f"{seen:g}", reason
    )
