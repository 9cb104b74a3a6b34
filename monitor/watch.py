"""Reads what the loop writes and says, into one picture of how it is doing."""

import json
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from grade.v1.parameters_pb2 import Version
from grade.v1.reward_group_pb2 import JoinRecord
from kafka import KafkaConsumer, TopicPartition

from monitor.latency import CloseToServed
from stream.connection import Connection, open_consumer
from stream.topics import Topics

RECENT_GROUPS = 3000
RECENT_VERSIONS = 40


@dataclass(slots=True)
class Picture:
    """How the loop is doing right now. Counts are since the watch began."""

    health: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Answer of each process's /health; `status` is "away" where there is none."""
    groups: int = 0
    """Distinct reward groups that the join wrote."""
    open_groups: int = 0
    """Groups whose window has not closed yet, in all partitions that have an owner."""
    unread: int = 0
    """Input records that the join has not read yet."""
    refused: dict[str, int] = field(default_factory=dict)
    """Records of the late, orphans and dead-letters topics."""
    version: Version | None = None
    """Latest published version."""
    versions_published: int = 0
    versions_served: int = 0
    served_version: int = 0
    model_age_s: float = float("nan")
    """Seconds since the serving version was swapped in."""
    informative_share: float = float("nan")
    """Share of groups with any reward difference, over the last versions."""
    close_to_served_p50_ms: float = float("nan")
    close_to_served_p99_ms: float = float("nan")
    """Of the last groups."""
    traffic: dict[str, Any] = field(default_factory=dict)
    """What the traffic's status file says."""


class LoopWatch:
    """Follows a running loop from outside.

    Args:
        connection: where Kafka is.
        topics: names of the topics.
        admin_ports: port of /health by name of the process; `serve` also answers /swaps.
        status_file: JSON file that the traffic rewrites, if there is one.
    """

    def __init__(
        self,
        connection: Connection,
        topics: Topics,
        admin_ports: Mapping[str, int],
        status_file: Path | None = None,
    ) -> None:
        self._topics = topics
        self._ports = dict(admin_ports)
        self._status_file = status_file
        self._picture = Picture(refused=dict.fromkeys(topics.refused, 0))
        self._latency = CloseToServed()
        self._last_swap = (0, 0)
        self._last_group: dict[int, int] = {}
        self._swapped_at_ms = 0
        self._recent: deque[Version] = deque(maxlen=RECENT_VERSIONS)
        self._consumer: KafkaConsumer = open_consumer(connection)
        partitions = [
            TopicPartition(topic, partition)
            for topic in (topics.reward_groups, topics.versions, *topics.refused)
            for partition in sorted(self._consumer.partitions_for_topic(topic) or ())
        ]
        self._consumer.assign(partitions)
        self._consumer.seek_to_beginning(*partitions)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._consumer.close()

    @property
    def latency(self) -> CloseToServed:
        """Latency of every group since the watch began."""
        return self._latency

    def refresh(self, wait_s: float = 0.1) -> Picture:
        """Read what is new and return the picture.

        Args:
            wait_s: how long to wait for the first new record, in seconds.
        """
        self._read_topics(wait_s)
        self._read_health()
        self._read_swaps()
        self._read_traffic()
        picture = self._picture
        picture.close_to_served_p50_ms, picture.close_to_served_p99_ms = self._latency.percentiles(
            [50, 99], last=RECENT_GROUPS
        )
        groups = sum(version.groups for version in self._recent)
        if groups:
            informative = sum(version.informative_groups for version in self._recent)
            picture.informative_share = informative / groups
        if self._swapped_at_ms:
            picture.model_age_s = max(0.0, time.time() - self._swapped_at_ms / 1000)
        return picture

    def _read_topics(self, wait_s: float) -> None:
        fetched = self._consumer.poll(timeout_ms=int(wait_s * 1000))
        for partition, records in fetched.items():
            topic = partition.topic
            if topic == self._topics.reward_groups:
                for record in records:
                    joined = JoinRecord.FromString(record.value)
                    # Offsets of groups only rise; after a crash the join may repeat the last ones.
                    number, offset = partition.partition, joined.group.offset
                    if joined.HasField("group") and offset > self._last_group.get(number, -1):
                        self._last_group[number] = offset
                        self._picture.groups += 1
                        if joined.group.HasField("rewards"):  # the holdout is never learned from
                            self._latency.group(joined.group.close_time_ms)
            elif topic == self._topics.versions:
                for record in records:
                    version = Version.FromString(record.value)
                    self._recent.append(version)
                    self._picture.version = version
                    self._picture.versions_published += 1
            else:
                self._picture.refused[topic] += len(records)

    def _read_health(self) -> None:
        for name, port in self._ports.items():
            self._picture.health[name] = ask(port, "/health") or {"status": "away"}
        owned = [
            partition
            for answer in self._picture.health.values()
            for partition in answer.get("partitions", {}).values()
        ]
        self._picture.open_groups = sum(each["open_groups"] for each in owned)
        self._picture.unread = sum(sum(each["lag"].values()) for each in owned)

    def _read_swaps(self) -> None:
        swaps = ask(self._ports["serve"], "/swaps") if "serve" in self._ports else None
        if not swaps:
            return
        for swap in swaps:
            order = (swap["epoch"], swap["version"])
            if order <= self._last_swap:
                continue
            self._last_swap = order
            if swap["version"] > 0:
                self._latency.swap(swap["slot"], swap["slot_ms"], swap["wall_ms"])
                self._picture.versions_served += 1
        self._swapped_at_ms = swaps[-1]["wall_ms"]
        self._picture.served_version = swaps[-1]["version"]

    def _read_traffic(self) -> None:
        if self._status_file is not None and self._status_file.is_file():
            self._picture.traffic = json.loads(self._status_file.read_text(encoding="utf-8"))


def ask(port: int, path: str, timeout_s: float = 1.0) -> Any:
    """What a process's admin port answers on loopback; None if that is not JSON, or nothing."""
    url = f"http://127.0.0.1:{port}{path}"
    try:
        try:
            answer = urllib.request.urlopen(url, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            answer = error  # an unhealthy process says why
        with answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None
