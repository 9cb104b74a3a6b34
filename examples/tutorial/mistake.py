# mistake.py: a ranking tier with a bug: it shows the same episode twice.
from grade_client import Connection, EventProducer, PolicyClient, Topics

policy = PolicyClient("127.0.0.1:50051", "podcasts")
events = EventProducer(Connection("127.0.0.1:19092"), Topics("grade"), "podcasts")
with policy, events:
    features = {"hour": 8, "commuting": 1, "subscriptions": 7}
    sampled = policy.sample("a-request-with-a-bug", "listener-1", features)
    scores = [[0.2, 0.3, 0.9], [0.1, 0.2, 0.5], [0.1, 0.2, 0.1]]
    events.log_impression(sampled, ["episode-1", "episode-2", "episode-1"], scores)
