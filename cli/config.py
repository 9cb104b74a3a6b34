"""`grade config`: the effective settings, what they mean and where they come from."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.settings import ENVIRONMENT_PREFIX, Settings, load_settings, source_of


def config(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Print every setting with its value, its meaning and where the value comes from.

    A setting is read from the environment (GRADE_NAME), else from the TOML file that GRADE_CONFIG
    names or ./grade.toml, else it has its default.
    """
    settings = load_settings()
    values = settings.model_dump(mode="json")
    if as_json:
        typer.echo(
            json.dumps(
                {
                    name: {
                        "value": value,
                        "source": source_of(name),
                        "meaning": Settings.model_fields[name].description,
                    }
                    for name, value in values.items()
                },
                indent=2,
            )
        )
        return
    table = Table(
        "setting", "value", "source", "meaning", title=f"environment: {ENVIRONMENT_PREFIX}<SETTING>"
    )
    for name, value in values.items():
        table.add_row(name, str(value), source_of(name), Settings.model_fields[name].description)
    Console().print(table)
