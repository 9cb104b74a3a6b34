"""What every test may use; a real Kafka is started once per pytest worker, when first asked for."""

import gc
import logging
import os
import shutil
import signal
import warnings
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from stream.broker import BrokerStatus, LocalBroker
from stream.connection import Connection
from stream.topics import Topics
from tests.kafka import create_fresh
from tests.turns import one_at_a_time, turn

# As the command line does: one code path for bit-reproducible numbers.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Who runs in the background of a shell ignores Ctrl-C, and so would every process of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test that is marked `alone` run while no other worker runs one.

    The wait is outside of everything that pytest does for the test, so no time limit counts it.
    """
    shared = _shared_folder(item.config)
    if shared is None:
        return (yield)
    with turn(shared, alone=item.get_closest_marker("alone") is not None):
        return (yield)


def _shared_folder(config: pytest.Config) -> Path | None:
    """Folder that the workers of one run share; None if this is the only process."""
    if not hasattr(config, "workerinput"):
        return None
    factory: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined] # pytest gives it to fixtures only
    return factory.getbasetemp().parent


@pytest.fixture(scope="session")
def broker(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[BrokerStatus]:
    """A real Kafka broker that a worker's tests share; has `bootstrap_servers` and `port`."""
    folder = tmp_path_factory.mktemp("kafka")
    # Nobody needs its data afterwards: to write all of it to the disk would take it half a minute.
    local = LocalBroker(folder, start_timeout_s=120.0, stop_timeout_s=0.0)
    shared = _shared_folder(pytestconfig)
    try:
        # The first start downloads Kafka, into a folder that all workers share.
        with one_at_a_time(shared, "broker") if shared else nullcontext():
            status = local.up()
        yield status
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
