"""Every method plays a few blocks, and does what its name says where that is known by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.learning import vowpal
from benchmarks.learning.fixed import CrossEntropy, Fixed
from benchmarks.learning.method import Method
from benchmarks.learning.methods import ABLATIONS, FULL_OTHERS, OTHERS, OURS, new_method
from benchmarks.learning.ours import Grade
from benchmarks.learning.peers import entropy
from benchmarks.learning.play import play
from benchmarks.learning.worlds import SimulatedWorld, WorldSettings
from policy.batch import Batch, Requests
from policy.trainer import NOTHING, StepReport, Trainer
from policy.trainer_settings import TrainerSettings

SMALL = WorldSettings(objectives=3, candidates=12, shown=4)
LEARNING = [
    name
    for name in (OURS, *OTHERS, *FULL_OTHERS, *ABLATIONS)
    if not name.startswith("static_") and (name != "vw" or vowpal.available())
]


def method(name: str, world: SimulatedWorld) -> Method:
    settings = TrainerSettings(seed=100)
    return new_method(name, world.schema, world.examination, settings, 100)


@pytest.mark.parametrize("name", LEARNING)
def test_every_method_serves_weights_and_learns(name: str) -> None:
    world = SimulatedWorld(SMALL, seed=100)
    chosen = method(name, world)
    first = chosen.means(world.block(0, 64).features)
    run = play(world, chosen, 640, seed=100, checkpoints=(320, 640))
    assert [point.requests for point in run.points] == [320, 640]
    assert all(math.isfinite(point.recovered) for point in run.points)
    last = chosen.means(world.block(0, 64).features)
    for weights in (first, last):
        assert weights.shape == (64, 3)
        assert np.all(weights >= 0)
        np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert (name == "uniform") == np.array_equal(first, last)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a method of ours, .*, seen 'luck'"):
        method("luck", SimulatedWorld(SMALL, seed=100))


def test_fixed_weights_recover_what_their_value_is() -> None:
    world = SimulatedWorld(SMALL, seed=100)
    equal = np.full(3, 1 / 3)
    run = play(world, Fixed(equal), 64, checkpoints=(64,))
    assert run.points[0].recovered == 0.0
    corner = np.array([0.0, 1.0, 0.0])
    probes = world.probes(64)
    value = world.value(probes, np.tile(corner, (len(probes.features), 1))).mean()
    point = play(world, Fixed(corner), 64, checkpoints=(64,)).points[0]
    worth = world.worth(64)
    expected = (value - worth.uniform) / (worth.oracle - worth.uniform)
    assert point.recovered == pytest.approx(expected)


def test_ours_and_cross_entropy_get_better_where_there_is_something_to_learn() -> None:
    world = SimulatedWorld(SMALL, seed=100)
    for name in ("ours", "cem", "grpo"):
        assert play(world, method(name, world), 2_560, checkpoints=(2_560,)).points[0].recovered > 0


def test_the_cross_entropy_method_moves_to_the_best_of_a_generation() -> None:
    world = SimulatedWorld(SMALL, seed=100)
    search = CrossEntropy(world.schema, seed=100)
    generator = np.random.default_rng(0)
    before = search.means(np.zeros((1, 16)))[0]
    for index in range(8):
        block = world.block(index * 64, 64)
        groups = search.groups(block.features, generator)
        logged = world.show(block, groups.ranking())
        # Whoever puts the item with the most of the first signal on top earns.
        first = logged.signals[..., 0] == logged.signals[..., 0].max(axis=1, keepdims=True)
        search.learn(logged._replace(values=first.astype(float)), groups)
    assert search.means(np.zeros((1, 16)))[0][0] > before[0] + 0.1


def test_position_weights_left_out_change_what_is_learned() -> None:
    served = []
    for name in ("ours", "no_position"):
        world = SimulatedWorld(SMALL, seed=100)
        chosen = method(name, world)
        play(world, chosen, 640, seed=100, checkpoints=())
        served.append(chosen.means(world.block(0, 64).features))
    assert not np.allclose(served[0], served[1])


def test_without_position_weights_no_position_is_told_from_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gains are those that were earned, and the likelihood has no offset of examination."""
    learned: dict[str, list[Requests]] = {"ours": [], "no_position": []}
    for name, seen in learned.items():
        monkeypatch.setattr(Trainer, "learn", _noting(seen))
        world = SimulatedWorld(SMALL, seed=100)
        play(world, method(name, world), 64, seed=100, checkpoints=())
    (weighted,), (plain,) = learned.values()
    assert (weighted.examination[:, 1:] < 1).any()
    assert (plain.examination == 1).all()
    np.testing.assert_allclose(plain.values, weighted.values * world.examination[:4], rtol=1e-12)


def _noting(seen: list[Requests]) -> Callable[..., StepReport]:
    def learn(_: Trainer, batch: Batch, *, slot: int, version: int) -> StepReport:
        assert slot == version
        seen.append(batch.requests)
        return NOTHING

    return learn


def test_ours_tells_what_the_trainer_reports() -> None:
    world = SimulatedWorld(SMALL, seed=100)
    chosen = Grade(world.schema, TrainerSettings())
    assert chosen.inside() == {}
    play(world, chosen, 64, checkpoints=())
    assert chosen.inside()["groups"] == 64


def test_the_entropy_of_a_dirichlet_is_torchs() -> None:
    alpha = torch.tensor([[2.0, 3.0, 0.5], [9.0, 1.0, 4.0]], dtype=torch.float64)
    expected = torch.distributions.Dirichlet(alpha).entropy()  # type: ignore[no-untyped-call]  # torch ships it untyped
    torch.testing.assert_close(entropy(alpha), expected)


def test_the_grid_covers_the_simplex_evenly() -> None:
    grid = vowpal.simplex_grid(3, most=10)  # steps of a third: (3 + 2 choose 2)
    assert len(grid) == 10
    np.testing.assert_allclose(grid.sum(axis=1), 1)
    assert {tuple(row) for row in np.round(grid * 3).tolist()} == {
        (a, b, 3 - a - b) for a in range(4) for b in range(4 - a)
    }
