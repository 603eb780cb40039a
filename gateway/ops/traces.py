"""Traces, if there is somewhere to send them: an optional extra, and none of it is loaded without.

Configured by the variables that every program with OpenTelemetry has: `OTEL_EXPORTER_OTLP_ENDPOINT`
switches it on; `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME` and others
are read by the SDK, from the environment of the process.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from gateway.ops.spans import Traces

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables that name where to send spans; the first wins."""

EXTRA: Final = "traces"


class MissingExtra(Exception):
    """Traces are asked for and their libraries are not installed; says how to have them."""


def setup(
    environment: Mapping[str, str], gateway: str = "", exporter: "SpanExporter | None" = None
) -> "Traces | None":
    """Return what makes spans; None if nobody asks for any.

    Args:
        environment: of the process.
        gateway: id of this process, for `service.instance.id`.
        exporter: where spans go, instead of to the endpoint of the environment.

    Raises:
        MissingExtra: an endpoint is set, and the extra `traces` is not installed.
    """
    endpoint = next((name for name in ENDPOINTS if environment.get(name, "").strip()), None)
    if exporter is None and (endpoint is None or _switched_off(environment)):
        return None
    try:
        from gateway.ops import spans  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{endpoint} is set, and {error.name} is not installed: install the extra "
            f"`{EXTRA}` (dyno-gateway[gateway,{EXTRA}]), or unset the variable"
        ) from error
    return spans.traces(gateway, exporter)


def _switched_off(environment: Mapping[str, str]) -> bool:
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
