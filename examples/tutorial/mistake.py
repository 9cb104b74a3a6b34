# mistake.py: a feedback producer with a bug: there is no outcome of that name.
import sys

from grade_client import Connection, EventProducer, Topics

request_id, episode = sys.argv[1:]
with EventProducer(Connection("127.0.0.1:19092"), Topics("grade"), "podcasts") as events:
    events.log_conversion(request_id, episode, "pley")
