"""What a name of a request, a unit, an item or a conversion may not hold."""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def has_control_character(name: str) -> bool:
    """Whether a name holds one of the characters that files, terminals and databases stumble over.

    >>> has_control_character("request\\x007"), has_control_character("Anfrage 7 \u2713")
    (True, False)
    """
    return _CONTROL.search(name) is not None
