"""Every setting, declared once: environment `GRADE_*`, then one TOML file, then the default.

The TOML file is the one that `GRADE_CONFIG` names, else `grade.toml` in the current folder if it is
there. Settings are read here and nowhere else; what a process needs is passed down.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from policy.errors import SettingsError

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]
Milliseconds = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

ENVIRONMENT_PREFIX = "GRADE_"
CONFIG_VARIABLE = "GRADE_CONFIG"
DEFAULT_FILE = Path("grade.toml")


class Settings(BaseSettings):
    """The effective settings of a process; frozen."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
    )

    schema_path: Path = Path("policy.toml")
    """The policy's schema, a TOML file; for the server also a folder of them, one per policy."""
    data_dir: Path = Path(".grade")
    """Folder of all that is kept on disk: broker data, checkpoints, the last good snapshot."""
    log_format: Literal["console", "json"] = "console"
    """How log lines are written to standard error."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""

    admin_host: str = "127.0.0.1"
    """Address of every process's /metrics and /health."""

    bootstrap_servers: str = "127.0.0.1:19092"
    """Kafka brokers as host:port, separated by commas."""
    topic_prefix: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*$")] = "grade"
    """First part of every topic's name."""
    partitions: Count = 4
    """Partitions of the event topics; fixed for the life of the topics."""
    timestamps: Literal["broker", "event"] = "broker"
    """Whose time event topics carry: the broker's (live) or the event's own (replaying history)."""

    serve_host: str = "127.0.0.1"
    """Address that the policy server listens on."""
    serve_port: Port = 50051
    """Port of the policy server; 0 takes a free one."""
    serve_workers: Count = 1
    """Server processes that share the port; each core that is to answer needs one."""
    serve_members: Count = 8
    """Weight vectors per sampled group."""
    serve_seed: int = 0
    """Seed of the draws; part of what makes a decision recomputable."""
    serve_max_concurrent_rpcs: Count = 256
    """Calls in flight beyond which further ones are refused with RESOURCE_EXHAUSTED."""
    serve_ready_timeout_s: Seconds = 10.0
    """How long to wait for the parameters topic at start before serving the last good snapshot."""
    serve_grace_s: Seconds = 5.0
    """How long calls in flight may go on after SIGTERM."""
    serve_reflection: bool = False
    """Whether the server describes its services by gRPC reflection."""
    serve_admin_port: Port = 9101
    """Port of the policy server's /metrics, /health and /swaps; 0 takes a free one."""

    join_group: str = "grade-join"
    """Kafka consumer group of the join's workers."""
    join_max_open_groups: Count = 200_000
    """Open groups per partition at which reading further impressions pauses."""
    join_ticks: Literal["owner", "producer"] = "owner"
    """Who ticks idle logs: the partition's owner (live) or the producer (replaying history)."""
    join_tick_interval_ms: Milliseconds = 100
    """Interval of ticks while something is open."""
    join_idle_tick_interval_ms: Milliseconds = 500
    """Interval of ticks while nothing is open."""
    join_session_timeout_s: Seconds = 10.0
    """How long a silent worker keeps its partitions."""
    join_stall_timeout_s: Seconds = 30.0
    """A worker that has records to read and makes no progress for so long ends itself."""
    join_admin_port: Port = 9102
    """Port of the join's /metrics and /health; 0 takes a free one."""

    learn_slot_ms: Milliseconds = 250
    """Length of a slot of log time; one slot's groups make one version."""
    learn_seed: int = 0
    """Seed of the learner's own draws and of the initial parameters."""
    learn_static_rate: Positive = 0.03
    """Adam's learning rate of the part that does not see the context."""
    learn_contextual_rate: Positive = 0.003
    """Adam's learning rate of the contextual part and the concentration."""
    learn_served_epochs: Steps = 2
    """Clipped steps per slot on the groups as served."""
    learn_epsilon: Positive = 0.2
    """Clip of the importance ratio: it counts within 1 - epsilon to 1 + epsilon."""
    learn_ratio_cap: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.5
    """Greatest importance ratio of a stale group."""
    learn_kl_weight: Weight = 0.0
    """Weight of the KL to version 0, in reward units per nat; 0 is off."""
    learn_fresh_steps: Steps = 1
    """Steps per slot on groups drawn anew for the slot's own requests."""
    learn_replay_steps: Steps = 2
    """Steps per slot on groups drawn anew for past requests."""
    learn_average: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the latest parameters in those that are served, per slot; 1 serves the latest."""
    learn_format_weight: Weight = 1.0
    """Weight of keeping the schema's soft rules, beside an outcome's reward of about 1 at best."""
    learn_checkpoints_kept: Count = 5
    """Checkpoints that are kept on disk."""
    learn_versions_kept: Count = 100
    """Snapshots that stay in the parameters topic; older ones get tombstones."""
    learn_admin_port: Port = 9103
    """Port of the learner's /metrics and /health; 0 takes a free one."""

    simulate_admin_port: Port = 9104
    """Port of the simulated marketplace's /metrics and /health; 0 takes a free one."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: arguments, environment, file."""
        del dotenv_settings, file_secret_settings
        toml = config_file()
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        return sources if toml is None else (*sources, TomlConfigSettingsSource(settings_cls, toml))


def config_file() -> Path | None:
    """The settings file that is in force, if any.

    Raises:
        SettingsError: `GRADE_CONFIG` names a file that is not there.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    if named is not None:
        if not Path(named).is_file():
            raise SettingsError(
                f"{CONFIG_VARIABLE}: expected an existing TOML file, seen {named!r}"
            )
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings.

    Args:
        overrides: values that go before environment and file, such as command-line options; those
            that are None are left out.

    Raises:
        SettingsError: naming each wrong setting, what was expected and what was seen.
    """
    given = {k: v for k, v in (overrides or {}).items() if v is not None}
    unknown = [
        name
        for name in os.environ
        if name.startswith(ENVIRONMENT_PREFIX)
        and name != CONFIG_VARIABLE
        and name.removeprefix(ENVIRONMENT_PREFIX).lower() not in Settings.model_fields
    ]
    if unknown:
        raise SettingsError(
            f"{sorted(unknown)[0]}: expected a setting that `grade config` lists, "
            "seen an unknown name"
        )
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError(
            "\n".join(_sentence(e["loc"], e["msg"], e["input"]) for e in error.errors())
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config_file()}: expected TOML, seen: {error}") from None


def source_of(name: str) -> str:
    """Where the value of a setting comes from: `environment`, the file's name, or `default`."""
    if (ENVIRONMENT_PREFIX + name).upper() in os.environ:
        return "environment"
    path = config_file()
    if path is not None and name in tomllib.loads(path.read_text(encoding="utf-8")):
        return str(path)
    return "default"


def environment_of(model: BaseModel) -> dict[str, str]:
    """The `GRADE_*` variables under which a child process reads the same settings."""
    return {
        ENVIRONMENT_PREFIX + name.upper(): str(value)
        for name, value in model.model_dump(mode="json").items()
    }


def _sentence(location: tuple[int | str, ...], message: str, seen: object) -> str:
    name = str(location[0]) if location else "settings"
    wanted = message[0].lower() + message[1:]
    where = f"{ENVIRONMENT_PREFIX}{name.upper()} (or {name} in the settings file)"
    return f"{where}: {wanted}, seen {seen!r}"
