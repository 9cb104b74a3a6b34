from collections import Counter

from benchmarks.backlog import ITEMS, MEMBERS, feed_schema, make_backlog, new_join
from stream.join import Kind, Log
from stream.validation import Refusal, read_impression

REQUESTS = 2_000


def test_impressions_have_the_dimensions_that_are_told() -> None:
    schema = feed_schema()
    [logs] = make_backlog(50, rate=1_000, partitions=1).logs
    read = [read_impression(schema, each, 0, 1) for each in logs[Log.IMPRESSIONS] if not each.tick]
    impressions = [each for each in read if not isinstance(each, Refusal)]
    assert len(impressions) >= 48
    assert schema.n_objectives == 4
    assert all(len(each.item_ids) == ITEMS == 10 for each in impressions)
    assert all(len(each.scores) == 10 * 4 for each in impressions)
    assert MEMBERS == 8


def test_every_fate_is_there_and_every_record_is_decided() -> None:
    backlog = make_backlog(REQUESTS, rate=1_000, partitions=2)
    kinds: Counter[Kind] = Counter()
    for partition, logs in enumerate(backlog.logs):
        join, _ = new_join(partition, 2)
        for log in Log:
            step = join.feed(log, logs[log])
            kinds.update(output.kind for output in (*step.side, *step.groups))
        assert join.open_groups == 0
        assert join.idle
    # 0.2 % of the impressions are broken; a tenth as many conversions, 5 % late, 3 % orphans.
    assert 0.99 * REQUESTS < kinds[Kind.REWARD_GROUPS] < REQUESTS
    assert 1 <= kinds[Kind.LATE] <= 30
    assert 1 <= kinds[Kind.ORPHANS] <= 30
    assert kinds[Kind.DEAD_LETTERS] >= 1


def test_the_same_seed_makes_the_same_records() -> None:
    made = [make_backlog(30, rate=300, partitions=2, seed=5) for _ in range(2)]
    assert made[0] == made[1]
    assert made[0] != make_backlog(30, rate=300, partitions=2, seed=6)
