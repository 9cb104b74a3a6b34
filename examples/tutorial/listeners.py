# listeners.py: a feedback producer. It logs what listeners do with what they are shown.
import json
import random
import sys

from grade_client import Connection, EventProducer, Topics

with EventProducer(Connection("127.0.0.1:19092"), Topics("grade"), "podcasts") as events:
    for line in sys.stdin:
        request_id, episodes, freshness = json.loads(line)
        # These listeners want news: they play the freshest episode, and finish half of them.
        freshest = episodes[freshness.index(max(freshness))]
        if random.random() < 0.8:
            events.log_conversion(request_id, freshest, "play")
            if random.random() < 0.5:
                events.log_conversion(request_id, freshest, "finish")
    print(f"{events.sent} events logged")
