"""Every setting, declared once: environment `GRADE_*`, then one TOML file, then the default.

The TOML file is the one that `GRADE_CONFIG` names, else `grade.toml` in the current folder if it is
there. Settings are read here and nowhere else; what a process needs is passed down.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from grade.v1.refused_pb2 import Reason
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from policy.composite import Combination
from policy.errors import SettingsError, quoted
from policy.names import has_control_character
from policy.toml_table import parse_toml, read_text
from stream.checks import MOST_MEMBERS


def _no_truth_value(value: object) -> object:
    """True and False count as 1 and 0 in Python, and mean something else in a settings file."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


_IS_NUMBER = BeforeValidator(_no_truth_value)
# Environment and TOML have no null: what may be off is set to "off".
_FROM_OFF = BeforeValidator(lambda value: None if value == "off" else value)
_TO_OFF = PlainSerializer(lambda value: "off" if value is None else value, when_used="json")
# Upper limits are where a number stops to make sense, so that no library below meets it first.
Port = Annotated[int, Field(ge=0, le=65535), _IS_NUMBER]
Count = Annotated[int, Field(ge=1, le=1_000_000_000), _IS_NUMBER]
Seconds = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False), _IS_NUMBER]
Milliseconds = Annotated[int, Field(ge=1, le=86_400_000), _IS_NUMBER]
Steps = Annotated[int, Field(ge=0, le=10_000), _IS_NUMBER]
Positive = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False), _IS_NUMBER]
Weight = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False), _IS_NUMBER]
CountOrOff = Annotated[Count | None, _FROM_OFF, _TO_OFF]
StepsOrOff = Annotated[Steps | None, _FROM_OFF, _TO_OFF]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), _IS_NUMBER]

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
    partitions: Annotated[Count, Field(le=100_000)] = 4
    """Partitions of the event topics; fixed for the life of the topics."""
    timestamps: Literal["broker", "event"] = "broker"
    """Whose time event topics carry: the broker's (live) or the event's own (replaying history)."""

    serve_host: str = "127.0.0.1"
    """Address that the policy server listens on."""
    serve_port: Port = 50051
    """Port of the policy server; 0 takes a free one."""
    serve_workers: Count = 1
    """Server processes that share the port; each core that is to answer needs one."""
    serve_members: Annotated[Count, Field(le=MOST_MEMBERS)] = 8
    """Weight vectors per sampled group."""
    serve_seed: Seed = 0
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
    learn_seed: Seed = 0
    """Seed of the learner's own draws and of the initial parameters."""
    learn_static_rate: Positive = 0.03
    """Adam's learning rate of the part that does not see the context."""
    learn_contextual_rate: Positive = 0.003
    """Adam's learning rate of the contextual part and the concentration."""
    learn_served_epochs: Steps = 2
    """Clipped steps per slot on the groups as served."""
    learn_epsilon: Positive = 0.2
    """Clip of the importance ratio: it counts down to 1 - epsilon."""
    learn_epsilon_high: Positive = 0.2
    """The same upwards: to 1 + this."""
    learn_ratio_cap: Annotated[Positive, Field(ge=1)] = 1.5
    """Greatest importance ratio of a stale group."""
    learn_staleness_cap: StepsOrOff = None
    """Versions that a group may lag behind before the served steps leave it out; `off`: any."""
    learn_kl_weight: Weight = 0.0
    """Weight of the KL to the reference, in reward units per nat; 0 is off."""
    learn_reference: Literal["start", "average", "refresh"] = "start"
    """The reference: where the epoch began, a slow average of the learned, or a regular copy."""
    learn_fresh_steps: Steps = 1
    """Steps per slot on groups drawn anew for the slot's own requests."""
    learn_replay_steps: Steps = 8
    """Most steps per slot on past requests, in the long run; at first twice as many."""
    learn_feature_noise: Weight = 0.6
    """Noise on a past request's features when it is replayed, in their standard deviations."""
    learn_replay_slots: CountOrOff = None
    """Slots with groups after which a past request is not replayed any more; `off`: never."""
    learn_dropout: Annotated[Weight, Field(lt=1)] = 0.6
    """Share of the contextual part's hidden units that a request leaves out while it is learned."""
    learn_average: Annotated[Positive, Field(le=1)] = 0.01
    """Least share of the latest parameters in those that are served, per slot; 1 serves them."""
    learn_combine: Combination = "calibrated"
    """How posterior, prior and format become one advantage; docs/learning.md compares the ways."""
    learn_prior_weight: Weight = 0.3
    """Weight of the prior, which predicted signals promise, before calibration; 0 is off."""
    learn_format_weight: Weight = 1.0
    """Weight of keeping the schema's soft rules, beside an outcome's reward of about 1 at best."""
    learn_advantage_scale: Literal["off", "group", "batch"] = "off"
    """What advantages are divided by: nothing, or the deviation of their group or batch."""
    learn_drift_threshold: Positive = 5.0
    """Standard errors by which the lead over uniform weights falls before learning begins anew."""
    learn_checkpoints_kept: Count = 5
    """Checkpoints that are kept on disk."""
    learn_versions_kept: Count = 100
    """Snapshots that stay in the parameters topic; older ones get tombstones."""
    learn_admin_port: Port = 9103
    """Port of the learner's /metrics and /health; 0 takes a free one."""

    simulate_admin_port: Port = 9104
    """Port of the simulated marketplace's /metrics and /health; 0 takes a free one."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_control_characters(cls, value: object) -> object:
        if isinstance(value, str) and has_control_character(value):
            raise PydanticCustomError(
                "control_character", "Input should have no control characters"
            )
        return value

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
        in_file = InitSettingsSource(settings_cls, init_kwargs=file_content())
        return init_settings, env_settings, in_file


def config_file() -> Path | None:
    """The settings file that is in force, if any.

    Raises:
        SettingsError: `GRADE_CONFIG` names a file that is not there.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    if named is not None:
        if not Path(named).is_file():
            raise SettingsError(
                f"{CONFIG_VARIABLE}: expected an existing TOML file, seen {quoted(named)}",
                Reason.REASON_UNAVAILABLE,
            )
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def file_content() -> dict[str, Any]:
    """What the settings file says; empty if there is none.

    Raises:
        SettingsError: it cannot be read, or is not TOML.
    """
    path = config_file()
    if path is None:
        return {}
    return parse_toml(read_text(path, "a TOML file", SettingsError), str(path), SettingsError)


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
            "seen an unknown name",
            Reason.REASON_UNKNOWN_FIELD,
        )
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = error.errors()
        raise SettingsError(
            "\n".join(_sentence(e["loc"], _wanted(e["type"], e["msg"]), e["input"]) for e in wrong),
            _reason(wrong[0]["type"]),
        ) from None


def source_of(name: str) -> str:
    """Where the value of a setting comes from: `environment`, the file's name, or `default`."""
    if (ENVIRONMENT_PREFIX + name).upper() in os.environ:
        return "environment"
    return str(config_file()) if name in file_content() else "default"


def environment_of(model: BaseModel) -> dict[str, str]:
    """The `GRADE_*` variables under which a child process reads the same settings."""
    return {
        ENVIRONMENT_PREFIX + name.upper(): str(value)
        for name, value in model.model_dump(mode="json").items()
    }


def _wanted(kind: str, message: str) -> str:
    """What was expected, said as in all other messages."""
    if kind == "extra_forbidden":
        return "expected a setting that `grade config` lists"
    found = re.sub(r"^\w+ should match ", "expected a match of ", message)
    return re.sub(r"^\w+ should (be|have) ", "expected ", found)


def _sentence(location: tuple[int | str, ...], wanted: str, seen: object) -> str:
    name = str(location[0]) if location else "settings"
    where = f"{ENVIRONMENT_PREFIX}{name.upper()} (or {name} in the settings file)"
    return f"{where}: {wanted}, seen {quoted(seen)}"


def _reason(kind: str) -> "Reason.ValueType":
    """The reason that one of pydantic's kinds of error comes to."""
    if kind == "extra_forbidden":
        return Reason.REASON_UNKNOWN_FIELD
    if kind == "finite_number":
        return Reason.REASON_NOT_FINITE
    if kind in ("string_pattern_mismatch", "control_character"):
        return Reason.REASON_BAD_NAME
    if kind.endswith(("_type", "_parsing", "_from_float", "_size")):
        return Reason.REASON_WRONG_TYPE
    return Reason.REASON_OUT_OF_RANGE
