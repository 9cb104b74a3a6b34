import math

import numpy as np

from policy.batch import Requests, padded
from policy.past import PastRequests


def requests(*lengths_gains_features: tuple[int, float, float]) -> Requests:
    lengths = np.array([length for length, _, _ in lengths_gains_features])
    present = np.arange(lengths.max()) < lengths[:, None]
    values = np.zeros(present.shape)
    values[:, 0] = [gain for _, gain, _ in lengths_gains_features]
    features = np.array([[feature, 1 / 3] for _, _, feature in lengths_gains_features])
    items = values[present]
    signals = np.stack([np.repeat(features[:, 0], lengths), np.full(len(items), 0.1)], axis=1)
    return padded(features, present, signals, items, items / 7, np.full(len(items), 0.5))


def test_the_latest_with_an_outcome_are_kept() -> None:
    past = PastRequests(2, 2, most_items=25)
    past.add(requests((10, 1.0, 1), (10, 1.0, 2), (10, 0.0, 3)).earned(), slot=0)
    assert len(past) == 2
    past.add(requests((10, 1.0, 4), (5, 1.0, 5)).earned(), slot=0)
    # 10 + 10 + 10 + 5 items: the oldest had to go.
    assert len(past) == 3
    drawn = past.draw(np.random.default_rng(0), 100)
    assert set(drawn.features[:, 0]) == {2, 4, 5}


def test_exactly_as_many_items_as_may_be_kept_are_kept() -> None:
    past = PastRequests(2, 2, most_items=20)
    past.add(requests((10, 1.0, 1), (10, 1.0, 2)).earned(), slot=0)
    assert len(past) == 2
    past.add(requests((1, 1.0, 3)).earned(), slot=0)
    assert len(past) == 2


def test_what_is_drawn_belongs_together() -> None:
    past = PastRequests(2, 2, most_items=1_000)
    past.add(requests((3, 1.0, 3), (1, 2.0, 1), (7, 4.0, 7)).earned(), slot=0)
    drawn = past.draw(np.random.default_rng(0), 50)
    gain = {3: 1.0, 1: 2.0, 7: 4.0}
    for row, feature in enumerate(drawn.features[:, 0]):
        assert drawn.present[row].sum() == feature
        assert drawn.values[row].sum() == drawn.ideal[row] == gain[int(feature)]
        assert drawn.predicted[row, 0] == np.float32(gain[int(feature)] / 7)
        assert (drawn.signals[row, : int(feature), 0] == feature).all()
        assert (drawn.signals[row, int(feature) :] == 0).all()
        assert (drawn.examination[row] == np.where(drawn.present[row], 0.5, 1)).all()


def test_they_are_the_same_after_a_restore() -> None:
    past, other = (PastRequests(2, 2, most_items=1_000) for _ in range(2))
    past.add(requests(*((items, math.pi, items) for items in (3, 1, 7))).earned(), slot=0)
    other.restore(past.state())
    assert len(other) == 3
    one, same = (each.draw(np.random.default_rng(1), 20) for each in (past, other))
    for a, b in zip(one, same, strict=True):
        assert a.tobytes() == b.tobytes()
        assert a.dtype == b.dtype
    for each in (past, other):
        each.add(requests((990, 1.0, 0.0)), slot=0)
    assert len(past) == len(other) == 3


def test_no_past_is_restored_as_no_past() -> None:
    past = PastRequests(2, 2, most_items=10)
    past.add(requests((3, 1.0, 3)).earned(), slot=0)
    past.restore(PastRequests(2, 2, most_items=10).state())
    assert len(past) == 0
    past.add(requests((3, 1.0, 3)).earned(), slot=0)
    past.clear()
    assert past.state() == {}


def test_a_request_is_forgotten_after_so_many_slots() -> None:
    past = PastRequests(2, 2, most_items=1_000, most_slots=3)
    past.add(requests((3, 1.0, 1), (2, 1.0, 2)), slot=10)
    past.add(requests((4, 1.0, 3)), slot=11)
    nothing = requests((1, 0.0, 9)).earned()
    past.add(nothing, slot=12)
    assert len(past) == 3
    past.add(nothing, slot=13)
    drawn = past.draw(np.random.default_rng(0), 20)
    assert set(drawn.features[:, 0]) == {3}
    assert (drawn.signals[:, :4, 0] == 3).all()
    past.add(nothing, slot=14)
    assert len(past) == 0


def test_what_was_taken_out_stays_as_it_was() -> None:
    """Rows are kept in place and grow; a state must not grow or change with them."""
    past = PastRequests(2, 2, most_items=12)
    states, copies = [], []
    for slot in range(40):
        past.add(requests((slot % 4 + 1, 1.0, slot), (2, 1.0, slot + 0.5)), slot=slot)
        states.append(past.state())
        copies.append({name: array.copy() for name, array in past.state().items()})
    for state, copy in zip(states, copies, strict=True):
        assert state.keys() == copy.keys()
        for name in state:
            assert state[name].tolist() == copy[name].tolist()
    last = copies[-1]
    # 4 + 2, 3 + 2 items of the last slots, and what fits before them: 1 of 2 items would be one
    # too many.
    assert last["slots"].tolist() == [38, 38, 39, 39]
    assert last["lengths"].tolist() == [3, 2, 4, 2]
    assert last["features"][:, 0].tolist() == [38, 38.5, 39, 39.5]
    assert last["signals"][:, 0].tolist() == [38] * 3 + [38.5] * 2 + [39] * 4 + [39.5] * 2
