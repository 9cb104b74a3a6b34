"""What is worth a log line, and what is not."""

import logging

import pytest

from cli.logs import _no_end_of_a_client


@pytest.mark.parametrize(("error", "told"), [("Cancelled", False), ("NodeNotReadyError", True)])
def test_a_client_that_is_closed_while_it_asks_is_no_error(error: str, told: bool) -> None:
    """As kafka-python says it of both."""
    record = logging.LogRecord(
        "kafka.cluster", logging.ERROR, __file__, 1, "Metadata refresh: failed %s", (error,), None
    )
    assert _no_end_of_a_client(record) is told
