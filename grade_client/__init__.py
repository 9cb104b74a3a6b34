"""What a ranking tier and event producers import: ask for weights, blend, log what happened.

The policy server is asked through `PolicyClient`, on asyncio through `AsyncPolicyClient`; what was
shown and what users did goes to Kafka through `EventProducer`; `blend` is the fusion that every
other part of the system uses too.
"""

from grade_client.async_policy_client import AsyncPolicyClient
from grade_client.calls import Description, Sampled, SampleQuestion, blend
from grade_client.decisions import decode_decision, mean_weights
from grade_client.errors import DeliveryFailed, EventRefused, PolicyCallFailed
from grade_client.events import EventProducer, Logged
from grade_client.policy_client import PolicyClient
from stream.connection import Connection, KafkaUnreachable
from stream.topics import Topics

__all__ = [
    "AsyncPolicyClient",
    "Connection",
    "DeliveryFailed",
    "Description",
    "EventProducer",
    "EventRefused",
    "KafkaUnreachable",
    "Logged",
    "PolicyCallFailed",
    "PolicyClient",
    "SampleQuestion",
    "Sampled",
    "Topics",
    "blend",
    "decode_decision",
    "mean_weights",
]
