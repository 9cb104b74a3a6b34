"""The schemas of a policy's other generations: what was learned under some can be served."""

from collections.abc import Mapping
from typing import Final

import structlog

from policy.errors import BoundaryError, StreamError, TopicError
from policy.schema import Schema
from stream.connection import Connection
from stream.generation_changes import decide_alike
from stream.generations import read_generations, schema_of
from stream.topics import Topics

log = structlog.get_logger(__name__)

NONE: Final[Mapping[bytes, Schema]] = {}


class GenerationSchemas:
    """Schemas of other generations than the one whose schema is served, read when one is needed.

    Those before it; and of those after it the ones that decide as the served one does, so that a
    server need not be started anew when, say, the attribution window has changed.

    Args:
        connection: how to reach Kafka.
        topics: names of the policy's topics.
        served: the schema that is served.
    """

    def __init__(self, connection: Connection, topics: Topics, served: Schema) -> None:
        self._connection = connection
        self._topics = topics
        self._served = served
        self._known = NONE

    def for_digest(self, digest: bytes) -> Mapping[bytes, Schema]:
        """The schemas by their digests, read anew if a digest is not among those known.

        Args:
            digest: of the schema that a snapshot was learned under.

        Raises:
            KafkaUnreachable: no broker answers.
        """
        if digest == self._served.digest:
            return NONE
        if digest not in self._known:
            self._known = self._read()
        return self._known

    def _read(self) -> Mapping[bytes, Schema]:
        try:
            generations = read_generations(self._connection, self._topics, self._served.policy)
        except (StreamError, TopicError) as error:
            # Such as a system that is older than generations; what is served need not know.
            log.warning("generations_not_read", policy=self._served.policy, reason=str(error))
            return NONE
        digests = [each.schema_digest for each in generations]
        # Served before it has begun, a schema comes after all of them.
        end = len(digests)
        if self._served.digest in digests:
            end = end - 1 - digests[::-1].index(self._served.digest)
        found: dict[bytes, Schema] = {}
        for index, generation in enumerate(generations):
            try:
                schema = schema_of(generation)
            except BoundaryError as error:
                log.warning("generation_not_understood", reason=str(error))
                continue
            if index < end or decide_alike(self._served, schema):
                found[generation.schema_digest] = schema
        return found
