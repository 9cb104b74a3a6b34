"""The server's draws are the ones that anybody recomputes from policy.dirichlet."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.dirichlet import draw_generator, draw_simplex
from serving.draw import DrawKey, draw_simplices


@given(
    seed=st.integers(-(2**63), 2**63),
    epoch=st.integers(0, 2**64 - 1),
    version=st.integers(0, 2**64 - 1),
    request_ids=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5),
    scale=st.floats(1e-3, 200),
    members=st.integers(1, 9),
)
@settings(max_examples=100, deadline=None)
def test_equals_the_reference(
    seed: int, epoch: int, version: int, request_ids: list[str], scale: float, members: int
) -> None:
    generator = np.random.default_rng(len(request_ids))
    alpha = generator.uniform(0.1, 1, (len(request_ids), 4)) * scale
    features = generator.normal(size=(len(request_ids), 3)).astype(np.float32)
    key = DrawKey(seed, "feed", epoch, version)
    names = [name.encode("utf-8", "surrogatepass") for name in request_ids]
    drawn = draw_simplices(key, names, features, alpha, members)
    for row, name in enumerate(request_ids):
        reference = draw_generator(seed, "feed", epoch, version, name, features[row])
        expected = draw_simplex(reference, alpha[row], members)
        assert drawn[row].tobytes() == expected.tobytes()
