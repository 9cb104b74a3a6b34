"""The option --policy, which many verbs have: for which policy of several."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cli.settings import Settings, load_settings
from cli.wiring import policies, settings_of_policy

PolicyName = Annotated[
    str | None,
    typer.Option("--policy", help="Which policy, if schema_path is a folder of several."),
]


def load_policy_settings(
    policy: str | None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Read the settings as a process that works for one policy does.

    Args:
        policy: its name; None if there is only one.
        overrides: as in `load_settings`.

    Raises:
        SettingsError: a setting is wrong, or there is no such policy, or several and none is named.
        SchemaError: a schema file is wrong.
    """
    return settings_of_policy(load_settings(overrides), policy)


def settings_of_each_policy(settings: Settings) -> dict[str, Settings]:
    """What the processes of every policy read, by its name.

    Raises:
        SchemaError: a schema file is wrong.
    """
    names = [schema.policy for schema, _ in policies(settings)]
    return {name: settings_of_policy(settings, name) for name in names}
