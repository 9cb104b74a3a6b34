"""A library's repeated messages are thinned, its new ones are not."""

import logging

from cli.repeats import RepeatFilter


def message(text: str, *arguments: object, name: str = "aiokafka.client") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, __file__, 1, text, arguments, None)


def test_the_same_message_passes_once() -> None:
    """Whatever its arguments."""
    repeats = RepeatFilter(every_s=60.0)
    seen = [repeats.filter(message("no connection to %s", node)) for node in (1, 2, 3)]
    assert seen == [True, False, False]
    assert repeats.filter(message("connected to %s", 1))
    assert repeats.filter(message("no connection to %s", 1, name="aiokafka.conn"))


def test_it_passes_again_when_the_time_is_over() -> None:
    """Without a pause nothing is held back."""
    repeats = RepeatFilter(every_s=0.0)
    assert [repeats.filter(message("again")) for _ in range(2)] == [True, True]
