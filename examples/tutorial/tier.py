# tier.py: a ranking tier. It asks for weights, ranks episodes by them, and logs what it shows.
import json
import sys
import time
import uuid

import numpy as np

from grade_client import Connection, EventProducer, PolicyCallFailed, PolicyClient, Topics, blend

random = np.random.default_rng()
policy = PolicyClient("127.0.0.1:50051", "podcasts")
events = EventProducer(Connection("127.0.0.1:19092"), Topics("grade"), "podcasts")
with policy, events:
    description = policy.describe()
    for _ in range(int(sys.argv[1])):
        # A listener opens the app. Your code knows who it is and what the moment is like.
        request_id, listener = uuid.uuid4().hex, f"listener-{random.integers(500)}"
        hour, commuting = random.integers(24), random.integers(2)
        features = {"hour": hour, "commuting": commuting, "subscriptions": 7}
        # Twenty candidates, and what your models say of each: [episode, objective].
        episodes = [f"episode-{number}" for number in random.choice(1000, 20, replace=False)]
        play, finish, fresh = random.beta(2, 8, 20), random.beta(2, 5, 20), random.uniform(size=20)
        scores = np.column_stack([play, finish, fresh])
        try:
            sampled = policy.sample(request_id, listener, features)
        except PolicyCallFailed as failed:  # rank by today's weights; there is nothing to log
            print(failed, file=sys.stderr)
            continue
        best_first = np.argsort(-blend(description, sampled.weights, scores))
        shown, unshown = best_first[:5], best_first[5:]
        names = [episodes[k] for k in shown]
        events.log_impression(sampled, names, scores[shown], unshown_scores=scores[unshown])
        # What the app would send to the listener's phone.
        print(json.dumps([request_id, names, fresh[shown].tolist()]), flush=True)
        time.sleep(0.01)  # at most a hundred listeners a second
