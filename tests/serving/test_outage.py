"""A broker outage: requests go on, the age grows, and the newest version serves afterwards."""

import gc
import logging
from pathlib import Path

import pytest
from grade.v1.policy_service_pb2 import SampleRequest

from stream.broker import LocalBroker
from stream.connection import Connection
from stream.topics import create
from tests.kafka import await_until, fresh_plan
from tests.serving.parameters import made_context, made_snapshot, publish
from tests.serving.running import calling, running_server


# kafka-python leaves the socket of a connection that was refused to the garbage collector; its log
# lines, which pytest keeps, refer to it.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_kafka_goes_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="kafka")
    broker = LocalBroker(tmp_path / "kafka", start_timeout_s=120.0)
    connection = Connection(broker.up().bootstrap_servers, client_id="grade-test")
    plan = fresh_plan()
    topic = plan.topics.parameters
    request = SampleRequest(context=made_context(1))
    try:
        create(connection, plan)
        publish(connection, topic, [made_snapshot(1)])
        with running_server(connection, plan.topics) as server, calling(server) as stub:
            assert stub.Sample(request, timeout=10).version == 1
            broker.down()
            await_until(lambda: server.health()["kafka"] == "away", timeout_s=60)
            await_until(lambda: server.health()["kafka_age_s"] > 3, timeout_s=60)
            assert stub.Sample(request, timeout=10).version == 1
            assert server.health()["status"] == "ok"
            broker.up()
            await_until(lambda: server.health()["kafka"] == "following", timeout_s=60)
            assert server.health()["kafka_trouble"] == ""
            publish(connection, topic, [made_snapshot(2)])
            await_until(lambda: stub.Sample(request, timeout=10).version == 2)
            assert server.health()["kafka_age_s"] < 3
    finally:
        broker.down()
        gc.collect()
