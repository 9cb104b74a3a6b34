"""Broken calls of the policy server."""

import math
from dataclasses import dataclass
from typing import Any

from grade.v1.context_pb2 import Context
from grade.v1.policy_service_pb2 import DescribePolicyRequest, SampleBatchRequest, SampleRequest
from grade.v1.refused_pb2 import Reason

from tests.bad_input.case import Case


@dataclass(frozen=True)
class BrokenCall:
    """The bytes that are sent, whatever they are."""

    method: str
    sent: bytes


def _context(**changes: Any) -> Context:
    fields = {"policy": "example", "request_id": "r", "unit_id": "u", "features": [12.0, 30.0, 0.5]}
    return Context(**{**fields, **changes})


def _sample(name: str, reason: "Reason.ValueType", *said: str, **changes: Any) -> Case[BrokenCall]:
    sent = SampleRequest(context=_context(**changes)).SerializeToString()
    return Case(f"call {name}", BrokenCall("Sample", sent), reason, said)


def _batch(*contexts: Context, policy: str = "example") -> bytes:
    requests = [SampleRequest(context=context) for context in contexts]
    return SampleBatchRequest(policy=policy, requests=requests).SerializeToString()


def _call(
    name: str, method: str, sent: bytes, reason: "Reason.ValueType", *said: str
) -> Case[BrokenCall]:
    return Case(f"call {name}", BrokenCall(method, sent), reason, said)


_SOUND = SampleRequest(context=_context()).SerializeToString()

CALLS = [
    _call(
        "cut short",
        "Sample",
        _SOUND[:-3],
        Reason.REASON_UNDECODABLE,
        f"request: expected a serialized message of the call, its texts in UTF-8, seen "
        f"{len(_SOUND) - 3} bytes that are none",
    ),
    _call("of other bytes", "SampleBatch", b"\xff" * 9, Reason.REASON_UNDECODABLE, "seen 9 bytes"),
    _call(
        "that is no UTF-8",
        "Sample",
        _SOUND.replace(b"example", b"exam\xffle"),
        Reason.REASON_UNDECODABLE,
        "its texts in UTF-8",
    ),
    _call(
        "with a number for a context",
        "Sample",
        b"\x08\x07",
        Reason.REASON_MISSING_FIELD,
        "context.policy: expected 'example', seen ''",
    ),
    _call("of nothing", "Sample", b"", Reason.REASON_MISSING_FIELD, "context.policy"),
    _sample(
        "of an unknown policy",
        Reason.REASON_UNKNOWN_POLICY,
        "context.policy: expected 'example', seen 'nobody'",
        policy="nobody",
    ),
    _sample(
        "of a policy with a name of a megabyte",
        Reason.REASON_UNKNOWN_POLICY,
        "(900002 long)",
        policy="x" * 900_000,
    ),
    _sample(
        "without a request",
        Reason.REASON_MISSING_FIELD,
        "context.request_id: expected 1 to 128 bytes of UTF-8, seen none",
        request_id="",
    ),
    _sample(
        "of a request with a long name",
        Reason.REASON_OUT_OF_RANGE,
        "context.request_id: expected 1 to 128 bytes of UTF-8, seen 130 bytes",
        request_id="é" * 65,
    ),
    _sample(
        "of a request with a NUL",
        Reason.REASON_BAD_NAME,
        "context.request_id: expected no control characters, seen 'a\\x00b'",
        request_id="a\0b",
    ),
    _sample("without a unit", Reason.REASON_MISSING_FIELD, "context.unit_id", unit_id=""),
    _sample(
        "of a unit with a long name",
        Reason.REASON_OUT_OF_RANGE,
        "context.unit_id: expected 1 to 128 bytes of UTF-8, seen 129 bytes",
        unit_id="u" * 129,
    ),
    _sample(
        "of a unit with a line break",
        Reason.REASON_BAD_NAME,
        "context.unit_id: expected no control characters",
        unit_id="u\n1",
    ),
    _sample(
        "without features",
        Reason.REASON_WRONG_DIMENSION,
        "context.features: expected 3 numbers, seen 0",
        features=[],
    ),
    _sample(
        "with a feature too many",
        Reason.REASON_WRONG_DIMENSION,
        "context.features: expected 3 numbers, seen 4",
        features=[1.0] * 4,
    ),
    _sample(
        "with 200,000 features",
        Reason.REASON_WRONG_DIMENSION,
        "expected 3 numbers, seen 200000",
        features=[1.0] * 200_000,
    ),
    _sample(
        "with a feature that is NaN",
        Reason.REASON_NOT_FINITE,
        "context.features[1]: expected a finite number for 'age_days', seen nan",
        features=[1.0, math.nan, 1.0],
    ),
    _sample(
        "with an infinite feature",
        Reason.REASON_NOT_FINITE,
        "context.features[2]: expected a finite number for 'past_click_rate', seen -inf",
        features=[1.0, 1.0, -math.inf],
    ),
    _sample(
        "with an absurd feature",
        Reason.REASON_OUT_OF_RANGE,
        "context.features[0]: expected a number in [-1e+09, 1e+09] for 'hour', seen 3e+38",
        features=[3e38, 1.0, 1.0],
    ),
    _sample(
        "with an absurd negative feature",
        Reason.REASON_OUT_OF_RANGE,
        "seen -1e+10",
        features=[-1e10, 1.0, 1.0],
    ),
    _call(
        "of a batch with a bad request in it",
        "SampleBatch",
        _batch(_context(), _context(features=[1.0])),
        Reason.REASON_WRONG_DIMENSION,
        "requests[1].context.features: expected 3 numbers, seen 1",
    ),
    _call(
        "of a batch that is too large",
        "SampleBatch",
        _batch(*[_context()] * 1_025),
        Reason.REASON_TOO_LARGE,
        "requests: expected at most 1024 requests, seen 1025",
    ),
    _call(
        "of a batch of two policies",
        "SampleBatch",
        _batch(_context(), _context(policy="another")),
        Reason.REASON_UNKNOWN_POLICY,
        "requests[1].context.policy: expected 'example', seen 'another'",
    ),
    _call(
        "of a batch of nobody's policy",
        "SampleBatch",
        _batch(_context(), policy="another"),
        Reason.REASON_UNKNOWN_POLICY,
        "policy: expected 'example', seen 'another'",
    ),
    _call(
        "for the description of an unknown policy",
        "DescribePolicy",
        DescribePolicyRequest(policy="nobody").SerializeToString(),
        Reason.REASON_UNKNOWN_POLICY,
        "policy: expected 'example', seen 'nobody'",
    ),
    _call(
        "for the description of no policy",
        "DescribePolicy",
        b"",
        Reason.REASON_MISSING_FIELD,
        "policy: expected 'example', seen ''",
    ),
]
