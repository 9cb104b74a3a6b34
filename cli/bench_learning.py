"""The part of `grade bench` that measures how well is learned rather than how fast."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.learning.figures import figures_of, left_out, run_all
from benchmarks.learning.run_task import Outcome
from benchmarks.learning.tasks import world_names
from benchmarks.report import Report, machine
from policy.errors import SettingsError


def measure_learning(
    seeds: range,
    data_dir: Path,
    worlds: tuple[str, ...],
    *,
    full: bool,
    workers: int | None,
    command: str,
) -> Report:
    """Run every method in every world, with progress on standard error.

    Args:
        seeds: one run of everything for each.
        data_dir: folder of the real requests.
        worlds: only these; all if empty.
        full: with the methods that take long.
        workers: how many processes; one per core if left out.
        command: that was given.

    Raises:
        SettingsError: there is no world of that name.
    """
    unknown = [world for world in worlds if world not in world_names()]
    if unknown:
        raise SettingsError(
            f"--world: expected one of {', '.join(world_names())}, seen {unknown[0]!r}"
        )
    console = Console(stderr=True)
    for remark in left_out(data_dir, full=full):
        console.print(f"note: {remark}", style="yellow", highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task("learning", total=None)

        def seen(done: int, of: int, outcome: Outcome) -> None:
            progress.update(bar, completed=done, total=of, description=outcome.task.key)

        outcomes = run_all(seeds, data_dir, full=full, worlds=worlds, workers=workers, seen=seen)
    return Report("learning", figures_of(outcomes, data_dir), machine(), command)
