"""A policy server in this process, on a real socket, and what it is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
from grade.v1.policy_service_pb2_grpc import PolicyServiceStub

from policy.schema import Schema
from serving.server import PolicyServer, ServerSettings
from stream.connection import Connection
from stream.topics import Topics
from tests.serving.parameters import EXAMPLE

SETTINGS = ServerSettings(members=4, ready_timeout_s=20.0, grace_s=5.0)
NO_TOPICS = Topics("nothing")
NOBODY = Connection("127.0.0.1:9", client_id="grade-test", timeout_s=0.2)
"""A Kafka that is not there: nothing listens on the discard port."""


@contextmanager
def running_server(
    connection: Connection, topics: Topics, schema: Schema = EXAMPLE, **changes: Any
) -> Iterator[PolicyServer]:
    """A server of one policy that answers requests; `changes` are to `SETTINGS`."""
    server = PolicyServer([(schema, topics)], replace(SETTINGS, **changes), connection)
    server.start()
    try:
        assert server.get_ready()
        yield server
    finally:
        server.stop()


@contextmanager
def calling(server: PolicyServer) -> Iterator[PolicyServiceStub]:
    """A stub on a connection of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield PolicyServiceStub(channel)
