"""The live view draws whatever there is to show, from the first moment on."""

import io

from grade.v1.parameters_pb2 import Version
from rich.console import Console

from monitor.terminal import draw
from monitor.watch import Picture

NOTHING_REFUSED = {"late": 0, "orphans": 0, "dead-letters": 0}


def drawn(picture: Picture) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(draw(picture, ["pctr", "pcvr"], "a title"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_nothing_yet() -> None:
    assert "not yet" in drawn(Picture(refused=NOTHING_REFUSED))


def test_traffic_that_has_no_figures_yet_says_null() -> None:
    traffic = {
        "decisions": 0,
        "rpc_ms": {"p50": None, "p99": None},
        "curve": [{"recovered": None}],
        "value": {"recovered": None, "static_recovered": None},
    }
    text = drawn(Picture(refused=NOTHING_REFUSED, traffic=traffic))
    assert "not yet" in text
    assert "–" in text


def test_a_running_system() -> None:
    picture = Picture(
        health={"serve": {"status": "ok"}, "learn": {"status": "away"}},
        groups=1234,
        refused={"late": 5, "orphans": 6, "dead-letters": 7},
        version=Version(mean_weights=[0.25, 0.75], gate=1.0),
        traffic={
            "decisions": 4321,
            "rpc_ms": {"p50": 1.25, "p99": 9.75},
            "curve": [{"recovered": 0.0}, {"recovered": 0.5}],
            "value": {"static_recovered": 0.42},
        },
    )
    text = drawn(picture)
    for shown in ("1,234", "4,321", "5 · 6", "0.75", "now 0.50", "best static 0.42", "(away)"):
        assert shown in text
