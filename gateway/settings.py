"""The gateway's settings: every environment variable it reads, typed, documented and checked.

`docs/configuration.md` is checked against this model. Rooms never see it: `app.py` hands them the
values they need.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

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
    admin_key: SecretStr = Field(
        SecretStr(""),
        description="Key of operators, for `/admin/v1` and `/metrics`, which without it are "
        "closed; at least 32 characters.",
    )
    gateway_servers: Path | None = Field(
        None,
        description="Path of the servers file (docs/servers.md). Default: servers.json with the "
        "local launcher, no file with heroku, which discovers servers.",
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
    heroku_apps: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Apps whose `mcp*` process types are servers, comma-separated; required with "
        "the heroku launcher.",
    )
    heroku_api_url: HttpUrl = Field(
        HttpUrl("https://api.heroku.com"), description="Base URL of the Platform API."
    )
    heroku_app_name: str = Field(
        "", description="The gateway's own app; the platform sets it with dyno metadata enabled."
    )
    heroku_app_id: str = Field("", description="The same as an id.")
    heroku_refresh_s: float = Field(
        60.0, ge=5, le=86_400, description="How often the apps are looked at for servers, seconds."
    )
    heroku_webhooks: bool = Field(
        True, description="Subscribe to the apps' dyno and release events."
    )
    allow_own_app: bool = Field(
        False,
        description="Let servers run in dynos of the gateway's own app. Their environment is "
        "rid of the gateway's secrets, but the app's other config vars are theirs.",
    )
    dyno_size: str | None = Field(
        None, description="Size of dynos whose server and formation name none; basic if not set."
    )
    monthly_budget_usd: float | None = Field(
        None,
        ge=0,
        description="What all dynos of a calendar month (UTC) may cost: no dyno is launched that "
        "could, at its longest, exceed it.",
    )
    key_budgets_usd: Annotated[Mapping[str, float], NoDecode] = Field(
        {}, description="The same for single principals, as `name:usd,name:usd`."
    )
    warm_usd_per_hour: float = Field(
        1.0, ge=0, description="What parked dynos may cost in any hour."
    )
    warm_usd_per_month: float = Field(
        50.0, ge=0, description="What parked dynos may cost in a calendar month (UTC)."
    )
    queue_length: int = Field(
        20,
        ge=0,
        le=1000,
        description="Sessions that may wait while an app's dyno limit is reached.",
    )
    queue_timeout_s: float = Field(
        120.0, gt=0, le=3600, description="How long one may wait there, seconds."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Valkey or Redis, `rediss://…` or `redis://…`: what several gateway processes "
        "share. Without it one process serves, and keeps its state in memory.",
    )
    redis_tls_verify: bool = Field(
        False,
        description="Check the certificate of a `rediss://` server. Heroku Key-Value Store has "
        "self-signed ones.",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names, comma-separated, by which browsers may reach the gateway besides "
        "that of GATEWAY_URL (and loopback names when it listens on loopback).",
    )
    toolkit_separator: Literal["/", "__", "."] = Field(
        "/",
        description="What stands between server and tool in the names of toolkits (docs/servers.md)"
        " that name none: `/` as Heroku has it, `__` for clients that take no slash, or `.`.",
    )
    inference_url: HttpUrl | None = Field(
        None,
        description="Base URL of the model behind `/v1/agents/heroku`: any server with an "
        "OpenAI-compatible `/v1/chat/completions`. Without it that endpoint is closed.",
    )
    inference_key: SecretStr | None = Field(
        None, description="Key for INFERENCE_URL; never reaches a dyno, a client or a log."
    )
    inference_model_id: str = Field(
        "", description="Model of requests to `/v1/agents/heroku` that name none."
    )
    story_bytes: int = Field(
        262_144,
        ge=4096,
        le=16_777_216,
        description="What is kept of one session's story; beyond, its oldest lines go.",
    )
    stories_bytes: int = Field(
        16_777_216,
        ge=65_536,
        description="What is kept of all stories, in memory or in REDIS_URL; beyond, those go that "
        "were silent for longest.",
    )
    story_ttl_s: float = Field(
        86_400.0,
        ge=60,
        le=2_592_000,
        description="How long the story of a session is kept that has ended, in seconds.",
    )
    link_grace_s: float = Field(
        300.0,
        ge=1,
        le=86_400,
        description="How long an agent may be out of reach, in seconds, before its session ends.",
    )
    max_sessions: int = Field(
        100, ge=1, le=10_000, description="Sessions with a dyno at once, over all processes."
    )
    max_sessions_per_key: int | None = Field(
        None, ge=1, description="The same for each principal. None: no limit of its own."
    )
    opens_per_minute: float | None = Field(
        None,
        gt=0,
        description="Sessions that one principal may open in a minute, over all processes; as many "
        "at once. None: no limit.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    log_format: Literal["auto", "pretty", "logfmt", "json"] = Field(
        "auto", description="auto: pretty on a terminal, logfmt otherwise."
    )

    @field_validator("allowed_origins", "heroku_apps", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip().lower() for part in value.split(",") if part.strip())
        return value

    @field_validator("key_budgets_usd", mode="before")
    @classmethod
    def _split_budgets(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        budgets: dict[str, float] = {}
        for entry in filter(str.strip, value.split(",")):
            name, _, usd = (part.strip() for part in entry.rpartition(":"))
            if not name or not usd.replace(".", "", 1).isdecimal():
                raise ValueError("expected `name:usd,name:usd`, such as `ci:5,alice:12.50`")
            budgets[name] = float(usd)
        return budgets

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
        self._check_store()
        self._check_operators()
        if self.launcher_name == "heroku":
            self._check_heroku()
        return self

    def _check_store(self) -> None:
        if self.redis_url is None:
            return
        url = urlsplit(self.redis_url.get_secret_value())
        if url.scheme not in ("redis", "rediss", "unix") or not (url.hostname or url.path):
            raise ValueError("REDIS_URL must be redis://…, rediss://… or unix://…")
        if self.gateway_secret is None:
            raise ValueError(
                "GATEWAY_SECRET is not set: processes that share REDIS_URL need the same one"
            )

    def _check_operators(self) -> None:
        admin = self.admin_key.get_secret_value()
        if admin and len(admin) < MIN_SECRET:
            raise ValueError(f"ADMIN_KEY must have at least {MIN_SECRET} characters")
        if admin in self.keys():
            raise ValueError("ADMIN_KEY must not be one of API_KEY: clients are no operators")
        strangers = self.key_budgets_usd.keys() - set(self.keys().values())
        if strangers:
            raise ValueError(f"KEY_BUDGETS_USD: API_KEY has no {', '.join(sorted(strangers))}")

    def _check_heroku(self) -> None:
        if self.heroku_api_key is None:
            raise ValueError("HEROKU_API_KEY is not set: `heroku authorizations:create` makes one")
        if not self.heroku_apps:
            raise ValueError("HEROKU_APPS is not set: name the apps whose servers are to run")
        if self.gateway_url is None:
            raise ValueError("GATEWAY_URL is not set: dynos must be told where to dial back")
        for name in ("heroku_api_url", "gateway_url"):
            url: HttpUrl = getattr(self, name)
            if url.scheme != "https" and (url.host or "").strip("[]") not in LOOPBACK:
                raise ValueError(f"{name.upper()} must be https unless it is on this machine")

    @property
    def address(self) -> str:
        """The address to listen on."""
        return self.bind_host or ("0.0.0.0" if self.dyno else "127.0.0.1")  # noqa: S104 - in a dyno

    @property
    def launcher_name(self) -> str:
        """The launcher that these settings ask for."""
        return self.launcher or ("heroku" if self.heroku_api_key else "local")

    @property
    def servers_file(self) -> Path | None:
        """The servers file to read, if any."""
        if self.gateway_servers is None and self.launcher_name == "local":
            return Path("servers.json")
        return self.gateway_servers

    @property
    def own_apps(self) -> frozenset[str]:
        """By what the gateway's own app is known, as far as the platform tells."""
        return frozenset(filter(None, (self.heroku_app_name, self.heroku_app_id)))

    @property
    def secrets(self) -> dict[str, str]:
        """The secret variables by name; empty ones are not set."""
        found: dict[str, str] = {}
        for name, field in type(self).model_fields.items():
            if field.annotation in (SecretStr, SecretStr | None):
                value = getattr(self, name)
                found[name.upper()] = "" if value is None else value.get_secret_value()
        return found

    @property
    def base_url(self) -> str:
        """Where agents dial, without a slash at the end."""
        if self.gateway_url is not None:
            return str(self.gateway_url).rstrip("/")
        host = "127.0.0.1" if self.address == "0.0.0.0" else self.address  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def inference_base(self) -> str | None:
        """Where `/chat/completions` is, if there is a model: with or without `/v1` in the URL."""
        if self.inference_url is None:
            return None
        return f"{str(self.inference_url).rstrip('/').removesuffix('/v1')}/v1"

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
