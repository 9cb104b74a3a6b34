"""Why a valid conversion is in no group: each reason with what was expected and what was seen."""

from grade.v1.refused_pb2 import Reason

from stream.attribution import PendingConversion, Window
from stream.validation import Refusal, shown


def not_shown(conversion: PendingConversion, window: Window) -> Refusal:
    """Its item is none of those of the impression whose window it lies in."""
    items = window.shown.item_ids
    listed = ", ".join(shown(item) for item in items[:3]) + (", ..." if len(items) > 3 else "")
    return Refusal(
        Reason.REASON_ITEM_NOT_SHOWN,
        f"item_id: expected one of the {len(items)} items of impression {window.offset} "
        f"({listed}), seen {shown(conversion.message.item_id)}",
    )


def too_much(conversion: PendingConversion, volume: int) -> Refusal:
    """A group must not grow beyond what Kafka takes.

    Like rule 3 the volume is that of valid conversions within D_c, accepted or not, so that a new
    owner decides the same.

    Args:
        conversion: the one with which it is too much.
        volume: bytes of its request within D_c, itself included.
    """
    settings = conversion.terms.settings
    return Refusal(
        Reason.REASON_TOO_LARGE,
        f"conversions of one request within {settings.conversion_repeat_ms} ms: expected at "
        f"most {settings.max_request_bytes} bytes, seen {volume} with this one",
    )


def too_late(conversion: PendingConversion, window: Window) -> Refusal:
    """It came after the window of its impression."""
    return Refusal(
        Reason.REASON_LATE,
        f"time: expected at most {window.terms.settings.window_ms} ms after impression "
        f"{window.offset}, seen {conversion.time_ms - window.time_ms} ms",
    )


def without_impression(conversion: PendingConversion) -> Refusal:
    """There is no impression that it could belong to."""
    settings = conversion.terms.settings
    return Refusal(
        Reason.REASON_ORPHAN,
        f"request_id: expected an impression of it from {settings.late_ms} ms before to "
        f"{settings.early_ms} ms after, seen none",
    )
