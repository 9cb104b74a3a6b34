"""What the verbs that read a data folder have in common."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evaluation.cross_fit import FOLDS
from evaluation.data_folder import DataFolder, read_data_folder
from policy.schema import Schema, load_schema


def folder_and_schema(
    data_dir: Path, schema: Path | None, console: Console
) -> tuple[DataFolder, Schema]:
    """Read a folder by its own or another schema; what was left out is told.

    Args:
        data_dir: the folder.
        schema: a schema file instead of the folder's policy.toml.
        console: for the remarks.
    """
    known = load_schema(schema or data_dir / "policy.toml")
    folder = read_data_folder(data_dir, known)
    for remark in folder.remarks:
        console.print(f"note: {remark}", style="yellow", highlight=False)
    return folder, known


@contextmanager
def folds_progress(console: Console) -> Iterator[Callable[[int], None]]:
    """Show how many folds have been fitted."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("folds fitted", total=FOLDS)
        yield lambda fitted: progress.update(task, completed=fitted)
