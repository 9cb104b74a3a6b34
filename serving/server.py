"""A policy server: engine, RPCs, health and the parameters follower, started and stopped as one."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from grade.v1 import policy_service_pb2
from grade.v1.policy_service_pb2_grpc import add_PolicyServiceServicer_to_server
from grade.v1.refused_pb2 import Reason
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from policy.errors import SettingsError
from policy.schema import Schema
from serving import metrics
from serving.engine import Engine
from serving.reload import ParametersFollower
from serving.servicer import Ages, PolicyServicer
from serving.status import StatusInterceptor
from stream.connection import Connection

LARGEST_REQUEST_BYTES: Final = 1024 * 1024
THREADS: Final = 8
"""Handlers that run at once. They share one interpreter lock, so more would not be faster."""
SERVICE: Final = policy_service_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a policy server runs."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 0
    """Port to listen on; 0 takes a free one."""
    seed: int = 0
    """Seed of the draws."""
    members: int = 8
    """Weight vectors per sampled group."""
    max_concurrent_rpcs: int = 256
    """Calls in flight beyond which further ones are refused with RESOURCE_EXHAUSTED."""
    ready_timeout_s: float = 10.0
    """How long to wait for the parameters topic before serving the last good snapshot."""
    grace_s: float = 5.0
    """How long calls in flight may go on while stopping."""
    reflection: bool = False
    """Whether the services are described by gRPC reflection."""
    snapshot_file: Path | None = None
    """Where the last good snapshot is kept; None keeps none."""


class PolicyServer:
    """Serves one policy.

    Args:
        schema: the policy's schema.
        settings: how to run.
        connection: how to reach Kafka.
        parameters_topic: topic of the snapshots.
    """

    def __init__(
        self,
        schema: Schema,
        settings: ServerSettings,
        connection: Connection,
        parameters_topic: str,
    ) -> None:
        self._settings = settings
        self._engine = Engine(schema, seed=settings.seed, members=settings.members)
        self._follower = ParametersFollower(
            self._engine, connection, parameters_topic, settings.snapshot_file
        )
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._health = health.HealthServicer()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="rpc")
        self._grpc: grpc.Server | None = None
        self._port = settings.port
        self._announce(False)
        metrics.VERSION_AGE.set_function(self._follower.version_age_s)
        metrics.KAFKA_AGE.set_function(self._follower.kafka_age_s)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def engine(self) -> Engine:
        """What decides."""
        return self._engine

    def start(self) -> None:
        """Listen and begin to read the parameters topic; health says NOT_SERVING until `get_ready`.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        server = grpc.server(
            self._threads,
            interceptors=[StatusInterceptor(SERVICE)],
            maximum_concurrent_rpcs=self._settings.max_concurrent_rpcs,
            options=[
                ("grpc.max_receive_message_length", LARGEST_REQUEST_BYTES),
                # Shared ports would let a second server start unnoticed on a taken one.
                ("grpc.so_reuseport", 0),
            ],
        )
        servicer = PolicyServicer(self._engine, self._ages, self._ready.is_set)
        add_PolicyServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._settings.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        self._port = self._listen(server)
        self._grpc = server
        server.start()
        self._follower.start()

    def get_ready(self, give_up: threading.Event | None = None) -> bool:
        """Wait for the newest parameters, else take the last good ones, then answer requests.

        Args:
            give_up: ends the waiting when set.

        Returns:
            False if it was given up.
        """
        caught_up = self._wait_caught_up(give_up)
        if give_up is not None and give_up.is_set():
            return False
        if not caught_up:
            from_file = self._follower.serve_last_good()
            log.warning(
                "serving_without_kafka",
                source="last good snapshot" if from_file else "baseline",
                waited_s=self._settings.ready_timeout_s,
            )
        self._ready.set()
        self._announce(True)
        return True

    def stop(self) -> None:
        """Say NOT_SERVING, let calls in flight end within the grace period, then stop."""
        self._stopping.set()
        self._announce(False)
        if self._grpc is not None:
            self._grpc.stop(self._settings.grace_s).wait()
            self._grpc = None
        self._threads.shutdown(wait=False)
        self._ready.clear()
        self._follower.stop()

    def health(self) -> dict[str, Any]:
        """What an operator wants to know, as JSON; `status` is "ok" while requests are welcome."""
        status = "ok" if self._ready.is_set() else "starting"
        if self._stopping.is_set():
            status = "stopping"
        if self._follower.failed:
            status = "failed"
        return {"status": status, **self._follower.health()}

    def swaps(self) -> list[dict[str, Any]]:
        """The last swaps, oldest first, as JSON."""
        return self._follower.swaps()

    def _listen(self, server: grpc.Server) -> int:
        host, port = self._settings.host, self._settings.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = int(server.add_insecure_port(address))
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise SettingsError(
                f"serve_host and serve_port: expected an address that is free, seen {address}, "
                "which cannot be listened on (in use, or not this machine's); "
                "choose another port, or 0 for any",
                Reason.REASON_UNAVAILABLE,
            )
        return bound

    def _wait_caught_up(self, give_up: threading.Event | None) -> bool:
        if give_up is None:
            return self._follower.wait_caught_up(self._settings.ready_timeout_s)
        slices = max(1, round(self._settings.ready_timeout_s / 0.1))
        for _ in range(slices):
            if self._follower.wait_caught_up(self._settings.ready_timeout_s / slices):
                return True
            if give_up.is_set():
                return False
        return False

    def _announce(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            self._health.set(service, status.SERVING if serving else status.NOT_SERVING)
        metrics.READY.set(serving)

    def _ages(self) -> Ages:
        return Ages(self._follower.version_age_s(), self._follower.kafka_age_s())
