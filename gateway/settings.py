"""The gateway's settings: every environment variable it reads, typed, documented and checked.

`docs/configuration.md` is checked against this model. Rooms never see it: `app.py` hands them the
values they need.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, HttpUrl, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
MIN_SECRET = 32


class BadSettings(Exception):
    """One or more variables are wrong; the message names each and says what it should hold."""


class Settings(BaseSettings):
    """Environment of `python -m gateway serve`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    port: int = Field(8000, ge=1, le=65535, description="Port to listen on; the platform sets it.")
    bind_host: str = Field(
        "",
        description="Address to listen on. Default: 0.0.0.0 in a dyno (DYNO is set), otherwise "
        "127.0.0.1.",
    )
    dyno: str = Field("", description="Set by the platform in every dyno.")
    api_key: SecretStr = Field(
        SecretStr(""),
        description="One client key, or several as `name:key,name:key`; the name is the principal.",
    )
    allow_anonymous: bool = Field(
        False, description="Serve without a key. Development only, on a loopback address only."
    )
    gateway_servers: Path = Field(
        Path("servers.json"), description="Path of the servers file (docs/servers.md)."
    )
    gateway_url: HttpUrl | None = Field(
        None,
        description="Public base URL that agents dial. Default: the listening address, which only "
        "the local launcher can reach.",
    )
    gateway_secret: SecretStr | None = Field(
        None,
        description="Seals what clients and agents carry; at least 32 characters. Sessions survive "
        "a restart with the same secret. Default: drawn at start with the local launcher; "
        "required with any other.",
    )
    launcher: Literal["local", "heroku"] | None = Field(
        None, description="Where dynos come from. Default: heroku if HEROKU_API_KEY is set."
    )
    heroku_api_key: SecretStr | None = Field(
        None, description="Platform API key of the heroku launcher; never reaches a dyno."
    )
    redis_url: SecretStr | None = Field(
        None, description="Shared store of several gateways. Not used yet: one process serves."
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names, comma-separated, by which browsers may reach the gateway besides "
        "that of GATEWAY_URL (and loopback names when it listens on loopback).",
    )
    link_grace_s: float = Field(
        300.0,
        ge=1,
        le=86_400,
        description="How long an agent may be out of reach, in seconds, before its session ends.",
    )
    max_sessions: int = Field(100, ge=1, le=10_000, description="Live sessions at once.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    log_format: Literal["auto", "pretty", "logfmt", "json"] = Field(
        "auto", description="auto: pretty on a terminal, logfmt otherwise."
    )

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip().lower() for part in value.split(",") if part.strip())
        return value

    @field_validator("log_level", "log_format", "launcher", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.keys():
            if not self.allow_anonymous:
                raise ValueError("API_KEY is not set: nobody could come in (`make run` makes one)")
            if self.address not in LOOPBACK:
                raise ValueError("ALLOW_ANONYMOUS works on a loopback BIND_HOST only: set API_KEY")
        if self.gateway_secret is None:
            if self.launcher_name != "local":
                raise ValueError("GATEWAY_SECRET is not set: draw one with `openssl rand -hex 32`")
        elif len(self.gateway_secret.get_secret_value()) < MIN_SECRET:
            raise ValueError(f"GATEWAY_SECRET must have at least {MIN_SECRET} characters")
        if self.launcher_name == "heroku":
            raise ValueError("LAUNCHER=heroku is not built yet: set LAUNCHER=local")
        return self

    @property
    def address(self) -> str:
        """The address to listen on."""
        return self.bind_host or ("0.0.0.0" if self.dyno else "127.0.0.1")  # noqa: S104 - in a dyno

    @property
    def launcher_name(self) -> str:
        """The launcher that these settings ask for."""
        return self.launcher or ("heroku" if self.heroku_api_key else "local")

    @property
    def base_url(self) -> str:
        """Where agents dial, without a slash at the end."""
        if self.gateway_url is not None:
            return str(self.gateway_url).rstrip("/")
        host = "127.0.0.1" if self.address == "0.0.0.0" else self.address  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Host names that this gateway goes by."""
        names = set(self.allowed_origins)
        if self.address in LOOPBACK:
            names |= LOOPBACK
        if self.gateway_url is not None and self.gateway_url.host:
            names.add(self.gateway_url.host.strip("[]"))
        return frozenset(names)

    def keys(self) -> dict[str, str]:
        """Return principal by key.

        Raises:
            ValueError: an empty name or key, or a key given twice.
        """
        text = self.api_key.get_secret_value().strip()
        if not text:
            return {}
        if ":" not in text:
            return {text: "default"}
        keys: dict[str, str] = {}
        for entry in text.split(","):
            name, _, key = (part.strip() for part in entry.partition(":"))
            if not name or not key or key in keys:
                raise ValueError("API_KEY must be one key, or `name:key,name:key`, all different")
            keys[key] = name
        return keys


def load(env_file: Path | None = None) -> Settings:
    """Read the settings from the environment and, below it, from a file of `NAME=value` lines.

    Raises:
        BadSettings: names every variable that is wrong.
    """
    try:
        return Settings(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        raise BadSettings("\n".join(_problem(problem) for problem in error.errors())) from None


def _problem(problem: Any) -> str:
    """One line a person can act on; the value is left out, it may be a secret."""
    name = ".".join(str(part) for part in problem["loc"]).upper()
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
