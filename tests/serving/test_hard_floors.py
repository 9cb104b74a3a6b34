"""Hard floors: no weight below its floor, and a logged density that is exact all the same.

The density is worked out again with fifty digits, from the float32 weights as they are shipped.
"""

import decimal
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np
from grade.v1.decision_pb2 import Decision
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policy.dirichlet import LEAST_COMPONENT, log_density, sample_weights
from policy.schema import Schema, parse_schema
from serving.engine import Engine
from tests.serving.parameters import made_context, made_snapshot, made_tensors

MEMBERS = 6
_PRECISE = decimal.Context(prec=50)
_HALF_LOG_2_PI = Decimal("0.91893853320467274178032973640561763986139747363778")
_BERNOULLI = [
    Fraction(1, 6),
    Fraction(-1, 30),
    Fraction(1, 42),
    Fraction(-1, 30),
    Fraction(5, 66),
    Fraction(-691, 2730),
    Fraction(7, 6),
    Fraction(-3617, 510),
    Fraction(43867, 798),
    Fraction(-174611, 330),
    Fraction(854513, 138),
    Fraction(-236364091, 2730),
]


def log_gamma(z: Decimal) -> Decimal:
    """Stirling's series beyond 40, with the recurrence down to z."""
    passed = Decimal(1)
    while z < 40:
        passed *= z
        z += 1
    series = sum(
        Decimal(b.numerator) / b.denominator / (2 * k * (2 * k - 1) * z ** (2 * k - 1))
        for k, b in enumerate(_BERNOULLI, start=1)
    )
    return -passed.ln() + (z - Decimal("0.5")) * z.ln() - z + _HALF_LOG_2_PI + series


def exact_log_density(
    weights: Sequence[float], alpha: Sequence[float], floors: Sequence[float]
) -> Decimal:
    """Of x = (w - floor) / (1 - sum of floors), which is kept at least `LEAST_COMPONENT`."""
    with decimal.localcontext(_PRECISE):
        left = 1 - sum(map(Decimal, floors))
        x = [(Decimal(w) - Decimal(f)) / left for w, f in zip(weights, floors, strict=True)]
        x = [max(each, Decimal(LEAST_COMPONENT)) for each in x]
        x = [each / sum(x) for each in x]
        a = [Decimal(each) for each in alpha]
        terms = sum((ai - 1) * xi.ln() for ai, xi in zip(a, x, strict=True))
        return log_gamma(sum(a, Decimal(0))) - sum(map(log_gamma, a)) + terms


def test_the_oracle_knows_what_everybody_knows() -> None:
    with decimal.localcontext(_PRECISE):
        assert abs(log_gamma(Decimal(5)) - Decimal(24).ln()) < Decimal("1e-25")
        half_pi_log = Decimal("0.57236494292470008707171367567652935582364740645766")
        assert abs(log_gamma(Decimal("0.5")) - half_pi_log) < Decimal("1e-25")
    # The density of Dirichlet(2, 1) is 2 x: at 1/4 it is 1/2.
    assert abs(exact_log_density([0.25, 0.75], [2, 1], [0, 0]) + Decimal(2).ln()) < 1e-25


@st.composite
def floors_of(draw: st.DrawFn, objectives: int) -> list[float]:
    """Floors whose sum goes from 0 to nearly 1."""
    shares = draw(st.lists(st.integers(0, 100), min_size=objectives, max_size=objectives))
    total = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 0.999]))
    whole = max(sum(shares), 1)
    return [total * share / whole for share in shares]


def close(seen: float, expected: Decimal) -> bool:
    return abs(seen - float(expected)) <= 1e-7 * max(1.0, abs(float(expected)))


@given(
    case=st.integers(2, 6).flatmap(
        lambda m: st.tuples(
            st.lists(st.floats(-8, 2.3).map(lambda e: 10.0**e), min_size=m, max_size=m),
            floors_of(m),
        )
    ),
    seed=st.integers(0, 2**32),
)
@example(case=([1e-8, 1e-8, 1e-8], [0.333, 0.333, 0.333]), seed=0)
@example(case=([1e-200, 4.0], [0.999, 0.0]), seed=0)
@settings(max_examples=60, deadline=None)
def test_any_alpha_and_any_floors(case: tuple[list[float], list[float]], seed: int) -> None:
    alpha, floors = np.array(case[0]), np.array(case[1])
    weights = sample_weights(np.random.default_rng(seed), alpha, floors, MEMBERS)
    assert (weights >= floors.astype(np.float32)).all()
    np.testing.assert_allclose(weights.sum(axis=-1, dtype=np.float64), 1, atol=1e-7 * len(alpha))
    for row, density in zip(weights.tolist(), log_density(weights, alpha, floors), strict=True):
        assert close(density, exact_log_density(row, alpha.tolist(), floors.tolist()))


def floored(floors: Sequence[float]) -> Schema:
    """A policy with these floors; what they leave is shared evenly."""
    left = (1 - sum(floors)) / len(floors)
    lines = ['policy = "floored"', 'features = ["one", "two"]']
    for number, floor in enumerate(floors):
        lines += ["[[objectives]]", f'name = "o{number}"']
        lines += [f"baseline = {floor + left!r}", f"floor = {floor!r}"]
    lines += ["[[outcomes]]", 'name = "click"', "gain = 1.0", "[attribution]", "window_s = 5"]
    return parse_schema("\n".join(lines))


@given(
    floors=st.integers(2, 6).flatmap(floors_of),
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
)
@settings(max_examples=30, deadline=None)
def test_what_a_server_logs(floors: list[float], seed: int, spread: float) -> None:
    schema = floored(floors)
    engine = Engine(schema, seed=seed, members=MEMBERS)
    tensors = made_tensors(schema, seed, spread=spread)
    assert engine.swap(engine.load(made_snapshot(1, schema=schema, tensors=tensors)))
    contexts = [made_context(seed + n, unit_id="u", schema=schema) for n in range(3)]
    for response in engine.sample_batch(contexts):
        decision = Decision.FromString(response.decision.payload)
        weights = np.array(decision.weights, dtype=np.float32).reshape(MEMBERS, -1)
        assert (weights >= schema.floors().astype(np.float32)).all()
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
        for row, density in zip(weights.tolist(), decision.log_densities, strict=True):
            expected = exact_log_density(row, decision.alpha, schema.floors().tolist())
            assert close(density, expected)
