import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy import dirichlet, grpo
from policy.dirichlet import (
    LEAST_COMPONENT,
    digamma,
    draw_generator,
    draw_simplex,
    kl,
    log_density,
    sample_weights,
    simplex_to_weights,
    weights_to_simplex,
)

Floats = npt.NDArray[np.float64]

# The range of a served alpha: concentration 4 to 200, and 0.02 / M of it everywhere.
least_alpha = 0.02 * 4


def alphas(data: st.DataObject, objectives: int) -> Floats:
    exponent = st.floats(math.log(least_alpha / objectives), math.log(200))
    drawn = data.draw(st.lists(exponent, min_size=objectives, max_size=objectives))
    return np.asarray(np.exp(np.array(drawn)))


def floors_of(data: st.DataObject, objectives: int) -> Floats:
    if data.draw(st.booleans()):
        return np.zeros(objectives)
    share = data.draw(st.floats(0.01, 0.9))
    parts = np.array(
        data.draw(st.lists(st.integers(0, 5), min_size=objectives, max_size=objectives))
    )
    return np.asarray(share * parts / max(parts.sum(), 1))


@settings(deadline=None, max_examples=200)
@given(data=st.data(), objectives=st.integers(2, 12), seed=st.integers(0, 2**32))
def test_served_density_equals_the_learners(
    data: st.DataObject, objectives: int, seed: int
) -> None:
    alpha, floors = alphas(data, objectives), floors_of(data, objectives)
    weights = sample_weights(np.random.default_rng(seed), alpha, floors, 8)
    served = log_density(weights, alpha, floors)
    simplex = torch.from_numpy(weights_to_simplex(weights, floors))
    learned = grpo.log_density(torch.from_numpy(alpha)[None], simplex[None])[0].numpy()
    assert np.isfinite(served).all()
    assert (np.abs(served - learned) <= 1e-5 * np.maximum(1, np.abs(learned))).all()


@settings(deadline=None, max_examples=200)
@given(data=st.data(), objectives=st.integers(2, 12), seed=st.integers(0, 2**32))
def test_shipped_weights_are_on_the_simplex_and_above_their_floors(
    data: st.DataObject, objectives: int, seed: int
) -> None:
    alpha, floors = alphas(data, objectives), floors_of(data, objectives)
    weights = sample_weights(np.random.default_rng(seed), alpha, floors, 16)
    assert weights.dtype == np.float32
    assert weights.shape == (16, objectives)
    np.testing.assert_allclose(weights.sum(axis=-1, dtype=np.float64), 1, rtol=0, atol=1e-6)
    assert (weights > floors * (1 - 1e-6)).all()
    simplex = weights_to_simplex(weights, floors)
    np.testing.assert_allclose(simplex.sum(axis=-1), 1, rtol=0, atol=1e-14)
    assert simplex.min() >= LEAST_COMPONENT * (1 - 1e-4)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), objectives=st.integers(2, 12))
def test_the_density_at_vertices_is_finite(data: st.DataObject, objectives: int) -> None:
    alpha, floors = alphas(data, objectives), floors_of(data, objectives)
    vertices = simplex_to_weights(np.eye(objectives), floors).astype(np.float32)
    assert np.isfinite(log_density(vertices, alpha, floors)).all()


@pytest.mark.parametrize("objectives", [2, 5, 12])
@pytest.mark.parametrize("concentration", [4.0, 20.0, 200.0])
@pytest.mark.parametrize("lean", [0.0, 0.9, 1.0])
def test_the_mean_of_the_draws_is_alpha_over_its_sum(
    objectives: int, concentration: float, lean: float
) -> None:
    mean = np.full(objectives, (1 - lean) / objectives)
    mean[0] += lean
    alpha = concentration * (0.98 * mean + 0.02 / objectives)
    draws = 40_000
    weights = sample_weights(np.random.default_rng(1), alpha, np.zeros(objectives), draws)
    expected = alpha / alpha.sum()
    spread = np.sqrt(expected * (1 - expected) / (concentration + 1))
    off = np.abs(weights.mean(axis=0, dtype=np.float64) - expected)
    # Five standard errors, and what clamping tiny components adds.
    assert (off < 5 * spread / math.sqrt(draws) + 2 * LEAST_COMPONENT).all()


def test_draws_of_tiny_alpha_sit_at_the_vertices_and_not_in_the_centre() -> None:
    alpha = np.full(4, 0.001)
    weights = sample_weights(np.random.default_rng(2), alpha, np.zeros(4), 4_000)
    assert np.isfinite(weights).all()
    assert (weights.max(axis=-1) > 0.99).mean() > 0.95
    share = np.bincount(weights.argmax(axis=-1), minlength=4) / 4_000
    np.testing.assert_allclose(share, 0.25, rtol=0, atol=5 * math.sqrt(0.1875 / 4_000))


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 5.0), (0.5, 0.5), (0.04, 3.0)])
def test_draws_of_two_objectives_follow_the_beta(a: float, b: float) -> None:
    """Against the beta's distribution function, integrated numerically from its density."""
    draws = draw_simplex(np.random.default_rng(3), np.array([a, b]), 20_000)[:, 0]
    # Substituting x = t^(1/a) takes the pole at 0 away, 1 - x = u^(1/b) the one at 1.
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    cells = 200_000

    def below_half(p: float, q: float, up_to: float) -> float:
        t = (np.arange(cells) + 0.5) / cells * up_to**p
        x = t ** (1 / p)
        return float(((1 - x) ** (q - 1)).mean() * up_to**p / p / math.exp(log_beta))

    for point in (0.01, 0.1, 0.3, 0.5):
        # Kolmogorov's bound at a fixed point: five standard errors of a share.
        assert (draws < point).mean() == pytest.approx(below_half(a, b, point), abs=0.018)
        assert (1 - draws < point).mean() == pytest.approx(below_half(b, a, point), abs=0.018)


@pytest.mark.parametrize("floor", [0.0, 0.2])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 5.0), (20.0, 30.0)])
def test_the_density_of_two_objectives_is_the_betas_and_integrates_to_one(
    a: float, b: float, floor: float
) -> None:
    cells = 20_000
    x = (np.arange(cells) + 0.5) / cells
    floors = np.array([floor, floor / 2])
    points = simplex_to_weights(np.stack([x, 1 - x], axis=-1), floors)
    density = np.exp(log_density(points, np.array([a, b]), floors))
    assert density.mean() == pytest.approx(1.0, rel=1e-6)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    closed = (a - 1) * np.log(x) + (b - 1) * np.log(1 - x) - log_beta
    inside = (x > 0.01) & (x < 0.99)
    np.testing.assert_allclose(np.log(density[inside]), closed[inside], rtol=0, atol=1e-9)


def test_the_density_of_three_objectives_integrates_to_one() -> None:
    cells = 400
    side = (np.arange(cells) + 0.5) / cells
    x, y = np.meshgrid(side, side)
    inside = x + y < 1
    points = np.stack([x, y, 1 - x - y], axis=-1)[inside]
    density = np.exp(log_density(points, np.array([2.0, 3.0, 4.0]), np.zeros(3)))
    assert density.sum() / cells**2 == pytest.approx(1.0, rel=1e-3)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), objectives=st.integers(2, 12))
def test_divergence_equals_torchs_and_is_never_negative(
    data: st.DataObject, objectives: int
) -> None:
    alpha, beta = alphas(data, objectives), alphas(data, objectives)
    ours = float(kl(alpha, beta))
    p = torch.distributions.Dirichlet(torch.from_numpy(alpha))
    q = torch.distributions.Dirichlet(torch.from_numpy(beta))
    assert ours == pytest.approx(float(torch.distributions.kl_divergence(p, q)), rel=1e-8, abs=1e-8)
    assert ours >= -1e-9
    twin = grpo.kl(torch.from_numpy(alpha), torch.from_numpy(beta))
    assert ours == pytest.approx(float(twin), rel=1e-8, abs=1e-8)
    assert float(kl(alpha, alpha)) == pytest.approx(0, abs=1e-9)


def test_divergence_takes_leading_axes() -> None:
    alpha = np.array([[1.0, 2.0], [3.0, 4.0]])
    beta = np.array([[2.0, 2.0], [1.0, 5.0]])
    assert kl(alpha, beta).tolist() == [float(kl(a, b)) for a, b in zip(alpha, beta, strict=True)]


def test_digamma_equals_torchs() -> None:
    x = np.exp(np.linspace(math.log(1e-3), math.log(1e3), 500))
    expected = torch.digamma(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(digamma(x), expected, rtol=1e-12, atol=1e-12)


def test_a_decision_draws_the_same_again_and_differently_for_anything_else() -> None:
    features = np.array([0.5, -1.0], dtype=np.float32)

    def draw(*what: object, context: npt.NDArray[np.float32] = features) -> list[float]:
        seed, policy, epoch, version, request = what
        generator = draw_generator(seed, policy, epoch, version, request, context)  # type: ignore[arg-type]  # as given
        values: list[float] = generator.random(4).tolist()
        return values

    first = draw(0, "p", 1, 2, "r")
    assert draw(0, "p", 1, 2, "r") == first
    others = [
        draw(1, "p", 1, 2, "r"),
        draw(0, "q", 1, 2, "r"),
        draw(0, "p", 2, 2, "r"),
        draw(0, "p", 1, 3, "r"),
        draw(0, "p", 12, 2, "r"),
        draw(0, "p", 1, 22, "r"),
        draw(0, "p", 1, 2, "s"),
        draw(0, "p", 1, 2, "r", context=np.array([0.5, -1.0000001], dtype=np.float32)),
        draw(0, "p", 1, 2, "r", context=features[:1]),
    ]
    assert len({tuple(values) for values in [first, *others]}) == 10


def test_draws_of_a_batch_have_its_shape() -> None:
    alpha = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    drawn = dirichlet.draw_simplex(np.random.default_rng(0), alpha, 7)
    assert drawn.shape == (2, 7, 3)
    np.testing.assert_allclose(drawn.sum(axis=-1), 1, rtol=0, atol=1e-14)
