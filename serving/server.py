"""A policy server: engines, RPCs, health and parameters followers, started and stopped as one."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import structlog
from grade.v1 import policy_service_pb2
from grade.v1.policy_service_pb2_grpc import add_PolicyServiceServicer_to_server
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from policy.schema import Schema
from serving import metrics
from serving.engine import Engine
from serving.reload import ParametersFollower
from serving.servicer import Ages, PolicyServicer
from serving.shared_port import address_of, address_taken
from serving.status import StatusInterceptor
from stream.connection import Connection
from stream.topics import Topics

LARGEST_REQUEST_BYTES: Final = 1024 * 1024
BATCH_THREADS: Final = 2
"""Batches that are decided at once. They share one interpreter lock with all other calls."""
LAST_CALLS_S: Final = 0.1
"""How long a server that is to stop accepts calls and holds their answers back, in seconds. What
has arrived and is not accepted, gRPC cancels; who waits for an answer sends nothing further."""
SWITCH_INTERVAL_S: Final = 0.0005
"""How long a batch may keep the interpreter lock from the event loop; Python's default, ten times
as long, would be waited for at every step of every call."""
_SLICE_S: Final = 0.1
SERVICE: Final = policy_service_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name

log = structlog.get_logger(__name__)

_T = TypeVar("_T")


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
    snapshot_folder: Path | None = None
    """Where the last good snapshot of each policy is kept; None keeps none."""
    shared_port: bool = False
    """Whether further processes listen on the same port (SO_REUSEPORT)."""


class PolicyServer:
    """Serves policies: an engine and a follower for each, behind one port.

    Args:
        policies: each policy's schema and the names of its topics; their names differ.
        settings: how to run.
        connection: how to reach Kafka.
    """

    def __init__(
        self,
        policies: Sequence[tuple[Schema, Topics]],
        settings: ServerSettings,
        connection: Connection,
    ) -> None:
        self._settings = settings
        self._engines: dict[str, Engine] = {}
        self._followers: dict[str, ParametersFollower] = {}
        folder = settings.snapshot_folder
        for schema, topics in policies:
            name = schema.policy
            engine = Engine(schema, seed=settings.seed, members=settings.members)
            file = None if folder is None else folder / f"{name}.snapshot"
            follower = ParametersFollower(engine, connection, topics, file)
            self._engines[name], self._followers[name] = engine, follower
            metrics.VERSION_AGE.labels(policy=name).set_function(follower.version_age_s)
            metrics.KAFKA_AGE.labels(policy=name).set_function(follower.kafka_age_s)
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._health = health.aio.HealthServicer()
        self._threads = ThreadPoolExecutor(BATCH_THREADS, thread_name_prefix="batch")
        # All calls are answered by one event loop in a thread of its own.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        self._grpc: grpc.aio.Server | None = None
        self._servicer: PolicyServicer | None = None
        self._port = settings.port
        self._announce(False)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def engines(self) -> Mapping[str, Engine]:
        """What decides, by name of the policy."""
        return self._engines

    def start(self) -> None:
        """Listen, and begin to read the parameters topics.

        Health says NOT_SERVING until `get_ready`.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        self._loop = loop = asyncio.new_event_loop()
        self._loop_thread = threading.Thread(target=loop.run_forever, name="rpc", daemon=True)
        self._loop_thread.start()
        self._in_loop(self._answer_calls())
        for follower in self._followers.values():
            follower.start()

    async def _answer_calls(self) -> None:
        server = grpc.aio.server(
            interceptors=[StatusInterceptor(SERVICE, self._engines)],
            maximum_concurrent_rpcs=self._settings.max_concurrent_rpcs,
            options=[
                ("grpc.max_receive_message_length", LARGEST_REQUEST_BYTES),
                # Shared ports would let a second server start unnoticed on a taken one.
                ("grpc.so_reuseport", int(self._settings.shared_port)),
            ],
        )
        self._grpc = server
        servicer = PolicyServicer(self._engines, self._threads, self._ages, self._ready.is_set)
        self._servicer = servicer
        add_PolicyServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._settings.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        self._port = self._listen(server)
        await self._set_health(False)
        await server.start()

    def get_ready(self, give_up: threading.Event | None = None) -> bool:
        """Wait for the newest parameters, else take the last good ones, then answer requests.

        Args:
            give_up: ends the waiting when set.

        Returns:
            False if it was given up.
        """
        behind = self._wait_caught_up(give_up)
        if give_up is not None and give_up.is_set():
            return False
        for policy, follower in behind.items():
            from_file = follower.serve_last_good()
            log.warning(
                "serving_without_kafka",
                policy=policy,
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
        if self._loop is not None and self._loop_thread is not None:
            if self._grpc is not None and self._servicer is not None:
                self._in_loop(self._stop_answering(self._grpc, self._servicer))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join()
            self._loop.close()
            self._loop = self._loop_thread = self._grpc = self._servicer = None
        self._threads.shutdown(wait=False)
        self._ready.clear()
        for follower in self._followers.values():
            follower.stop()

    def health(self) -> dict[str, Any]:
        """What an operator wants to know, as JSON.

        `status` is "ok" while requests are welcome and every policy's parameters are followed, and
        `policies` tells the state of each. If there is one alone, its state is told beside `status`
        too.
        """
        status = "ok" if self._ready.is_set() else "starting"
        if self._stopping.is_set():
            status = "stopping"
        if any(follower.failed for follower in self._followers.values()):
            status = "failed"
        policies = {name: follower.health() for name, follower in self._followers.items()}
        only = next(iter(policies.values())) if len(policies) == 1 else {}
        return {"status": status, **only, "policies": policies}

    def swaps(self) -> list[dict[str, Any]]:
        """The last swaps of all policies, oldest first, as JSON."""
        swaps = [swap for follower in self._followers.values() for swap in follower.swaps()]
        return sorted(swaps, key=lambda swap: float(swap["wall_ms"]))

    def _listen(self, server: grpc.aio.Server) -> int:
        host, port = self._settings.host, self._settings.port
        try:
            bound = int(server.add_insecure_port(address_of(host, port)))
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise address_taken(host, port, "in use, or not this machine's")
        return bound

    def _wait_caught_up(self, give_up: threading.Event | None) -> dict[str, ParametersFollower]:
        """Wait for all followers; returns those that took too long."""
        behind = dict(self._followers)
        deadline = time.monotonic() + self._settings.ready_timeout_s
        while behind:
            for name, follower in list(behind.items()):
                left_s = deadline - time.monotonic()
                if follower.wait_caught_up(min(_SLICE_S, max(left_s, 0))):
                    del behind[name]
                elif left_s <= 0 or (give_up is not None and give_up.is_set()):
                    return behind
        return behind

    async def _stop_answering(self, server: grpc.aio.Server, servicer: PolicyServicer) -> None:
        servicer.hold()
        await asyncio.sleep(LAST_CALLS_S)
        stopping = asyncio.create_task(server.stop(self._settings.grace_s))
        await asyncio.sleep(0)  # no call is accepted from here on
        servicer.release()
        await stopping

    def _in_loop(self, task: Coroutine[Any, Any, _T]) -> _T:
        assert self._loop is not None, "start makes it"
        return asyncio.run_coroutine_threadsafe(task, self._loop).result()

    def _announce(self, serving: bool) -> None:
        if self._loop is not None:
            self._in_loop(self._set_health(serving))
        for policy in self._engines:
            metrics.READY.labels(policy=policy).set(serving)

    async def _set_health(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)

    def _ages(self, policy: str) -> Ages:
        follower = self._followers[policy]
        return Ages(follower.version_age_s(), follower.kafka_age_s())
