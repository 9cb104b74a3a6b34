"""What every test may use; a real Kafka broker is started once per run, when first asked for."""

import gc
import logging
import os
import shutil
import warnings
from collections.abc import Iterator

import pytest

from stream.broker import BrokerStatus, LocalBroker
from stream.connection import Connection
from stream.topics import Topics
from tests.kafka import create_fresh

# As the command line does: one code path for bit-reproducible numbers.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerStatus]:
    """A real Kafka broker that all tests share; has `bootstrap_servers` and `port`."""
    folder = tmp_path_factory.mktemp("kafka")
    local = LocalBroker(folder, start_timeout_s=120.0)
    try:
        yield local.up()
    finally:
        local.down()
        shutil.rmtree(folder)


@pytest.fixture
def connection(broker: BrokerStatus) -> Connection:
    """How to reach the shared broker."""
    return Connection(broker.bootstrap_servers, client_id="grade-test")


@pytest.fixture
def topics(connection: Connection) -> Topics:
    """Fresh topics under a prefix of their own: 2 partitions, the broker's time.

    For other choices call `tests.kafka.create_fresh(connection, partitions=..., ...)`.
    """
    return create_fresh(connection)


@pytest.fixture
def kafka_may_go_away() -> Iterator[None]:
    """For tests that stop a broker under its clients.

    kafka-python leaves the sockets of refused connections to the garbage collector, and pytest's
    captured log lines would keep them beyond the test.
    """
    logger = logging.getLogger("kafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "unclosed", ResourceWarning)
    yield
    gc.collect()
    logger.setLevel(level)
