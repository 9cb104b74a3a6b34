"""The example of docs/serving.md is run as it stands."""

import asyncio
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.grade_client.served import KnownAnswers, serving

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


class Request(NamedTuple):
    """What the example takes its questions from."""

    id: str
    user: str
    features: dict[str, float]


def test_the_example_on_asyncio_answers_a_batch() -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    by_name = {"hour": 13.0, "age_days": 2.0, "past_click_rate": 0.25}
    requests = [Request(f"r{number}", "u", by_name) for number in range(3)]
    with serving(KnownAnswers()) as target:
        for said, real in (("127.0.0.1:50051", target), ("timeout_s=0.1", "timeout_s=10")):
            assert said in code
            code = code.replace(said, real)
        defined: dict[str, Any] = {}
        exec(compile(code, str(PAGE), "exec"), defined)
        answers = asyncio.run(defined["weights"](requests))
    np.testing.assert_allclose(answers, [[0.5, 0.3, 0.2]] * 3, rtol=1e-6)
