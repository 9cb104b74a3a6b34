"""The answer of `grade learnable` in one sentence."""

from evaluation.bootstrap import Interval
from evaluation.learnable import Compared, Learnable


def answer(found: Learnable) -> str:
    """One sentence that begins with yes or no."""
    asked = {c.better: c for c in found.compared if c.lower_bound is not None}
    static = asked["static"]
    context = _better_of_two(asked["segment"], asked["contextual"])
    size = f"{found.requests:,} requests"
    if not static.yes and not context.yes:
        return (
            f"No: in these {size} nothing learned ranks better than today's weights or, by the "
            f"context, than static ones beyond chance (static {_gain(static)}; context "
            f"{_gain(context)}), though gains of {found.power['static'].detectable:.4f} and "
            f"{found.power['contextual'].detectable:.4f} NDCG would most likely have shown."
        )
    if not context.yes:
        return (
            f"Yes, but only static weights: they rank better than today's by {_gain(static)}, and "
            f"no gain of the context beyond that can be told from chance in these {size} "
            f"({_gain(context)}; {found.power['contextual'].detectable:.4f} would most likely have "
            "shown)."
        )
    by = {"segment": f"segments of {_names(found)}", "contextual": "the context"}[context.better]
    beginning = (
        f"static weights rank better than today's by {_gain(static)}"
        if static.yes
        else f"static weights rank no better than today's beyond chance ({_gain(static)})"
    )
    return f"Yes: {beginning}, and weights by {by} better than those by another {_gain(context)}."


def _better_of_two(segment: Compared, contextual: Compared) -> Compared:
    """The one that says yes; of two alike the one that gains more."""
    return max(contextual, segment, key=lambda c: (c.yes, c.gain.value))


def _gain(compared: Compared) -> str:
    return f"{shown(compared.gain)} NDCG"


def shown(gain: Interval) -> str:
    """A difference as people read it.

    >>> shown(Interval(0.0061, 0.0028, 0.0094))
    '+.0061 [+.0028, +.0094]'
    """
    value, low, high = (f"{x:+.4f}".replace("0.", ".", 1) for x in gain)
    return f"{value} [{low}, {high}]"


def _names(found: Learnable) -> str:
    return " and ".join(sorted({name for name in found.segment_features if name is not None}))
