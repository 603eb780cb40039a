"""Proves that heroku3's traps are closed: each claim about it holds here, and not of heroku3."""

import datetime
import logging
import socket
import ssl
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import heroku3
import pytest
import requests  # noqa: TID251 - what heroku3 raises
import structlog
import urllib3.exceptions
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from heroku3.api import Heroku, RateLimitExceeded

from gateway.launchers.heroku import failures
from gateway.launchers.heroku.api import ACCEPT, REFILL_S, Bounds, Meter, PlatformApi
from gateway.launchers.heroku.documents import DynoInfo, DynoRequest
from gateway.launchers.heroku.failures import Failure
from tests.fakes.scripted_platform import RESET, SILENCE, Answer, FakePlatform, serving

KEY = "HRKU-hush-hush"
TOKEN = "rj_launch.a-join-token"  # noqa: S105 - of a test
CALM = Bounds(connect_s=10.0, read_s=10.0, answer_s=10.0)
HASTY = Bounds(connect_s=10.0, read_s=0.05, answer_s=10.0)
"""For a platform that says nothing."""

DYNO = {"id": "d1", "name": "rendezvous.1", "command": "x", "state": "starting", "size": "Basic"}
REQUEST = DynoRequest(command="x", env={"TOKEN": TOKEN}, time_to_live=60)


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with serving(FakePlatform()) as platform:
        yield platform


@pytest.fixture
def api(platform: FakePlatform) -> Iterator[PlatformApi]:
    api = PlatformApi(KEY, platform.url, CALM)
    yield api
    api.close()


@pytest.fixture
def hasty(platform: FakePlatform) -> Iterator[PlatformApi]:
    hasty = PlatformApi(KEY, platform.url, HASTY)
    yield hasty
    hasty.close()


@pytest.fixture
def plain(platform: FakePlatform) -> Iterator[Heroku]:
    """heroku3 as it is, pointed at the platform; made as `from_key` makes it, but asking nobody."""
    session = requests.Session()
    session.trust_env = False
    plain = Heroku(session)
    plain._heroku_url = platform.url
    session.auth = ("", KEY)
    yield plain
    session.close()


# What heroku3 does, and we do not


def test_a_key_is_kept_without_asking_the_platform(
    platform: FakePlatform, plain: Heroku, api: PlatformApi
) -> None:
    assert api.authenticate(KEY) is True
    assert platform.got == []
    platform.answers(Answer({"remaining": 1}))
    plain.authenticate(KEY)
    assert [got.path for got in platform.got] == ["/account/rate-limits"]


def test_a_size_of_none_is_not_sent(
    platform: FakePlatform, plain: Heroku, api: PlatformApi
) -> None:
    platform.answers(Answer(DYNO, 201))
    api.create_dyno("app", REQUEST)
    assert "size" not in platform.got.pop().body
    app = {"id": "a", "name": "app"}
    for client, sent in ((api, {}), (plain, {"size": None})):
        platform.answers(Answer(app), Answer(DYNO, 201))
        client.app("app").run_command_detached("x")
        body = platform.got[-1].body
        assert {name: value for name, value in body.items() if name == "size"} == sent


def pages(*, stubborn: bool = False) -> list[Answer]:
    first = [dict(DYNO, id=f"d{n}") for n in (1, 2)]
    last = [dict(DYNO, id="d3")]
    following = {"Next-Range": "id d2..; max=2" if not stubborn else "id ..; max=2"}
    more = Answer(first, 206, following)
    return [more, more, more] if stubborn else [more, Answer(last)]


def test_a_list_of_several_pages_is_whole_and_nothing_is_printed(
    platform: FakePlatform, plain: Heroku, api: PlatformApi, capsys: pytest.CaptureFixture[str]
) -> None:
    platform.answers(*pages())
    assert [dyno.id for dyno in api.dynos("app")] == ["d1", "d2", "d3"]
    assert capsys.readouterr().out == ""
    assert [got.headers.get("Range") for got in platform.got] == [None, "id d2..; max=2"]
    platform.answers(*pages())
    plain._get_data(("apps", "app", "dynos"), order_by="id")
    assert "Response was chunked" in capsys.readouterr().out


def test_no_list_is_asked_for_with_a_malformed_range(
    platform: FakePlatform, plain: Heroku, api: PlatformApi
) -> None:
    platform.answers(Answer([]), Answer([]), Answer([]))
    api.dynos("app")
    api.current_release("app")
    assert [got.headers.get("Range") for got in platform.got] == [
        None,
        "version ..; max=10, order=desc",
    ]
    plain.apps()
    assert platform.got[-1].headers["Range"] == "id ..; ;"


def test_a_list_whose_pages_repeat_is_given_up(platform: FakePlatform, api: PlatformApi) -> None:
    platform.answers(*pages(stubborn=True))
    with pytest.raises(failures.Unavailable, match="without an end"):
        api.dynos("app")


def test_429_says_what_the_platform_said(
    platform: FakePlatform, plain: Heroku, api: PlatformApi
) -> None:
    document = {"id": "rate_limit", "message": "Your account reached the API rate limit"}
    refused = Answer(document, 429, {"RateLimit-Remaining": "0", "Retry-After": "7"})
    platform.answers(refused, refused)
    with pytest.raises(failures.RateLimited, match="reached the API rate limit") as ours:
        api.dynos("app")
    assert ours.value.retry_after_s == 7.0
    with pytest.raises(RateLimitExceeded) as theirs:
        plain.apps()
    assert not hasattr(theirs.value, "response")
    assert not hasattr(theirs.value, "retry_after_s")


def test_a_platform_that_says_nothing_is_waited_for_within_bounds(
    platform: FakePlatform, plain: Heroku, hasty: PlatformApi
) -> None:
    platform.answers(SILENCE)
    with pytest.raises(failures.Unavailable) as silent:
        hasty.dynos("app")
    assert silent.value.sent
    asked: list[Any] = []

    def send(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        asked.append(options.get("timeout"))
        raise requests.ConnectionError

    plain._session.send = send
    with pytest.raises(requests.ConnectionError):
        plain.apps()
    assert asked == [None]


def test_heroku3s_own_calls_have_the_bounds_too(platform: FakePlatform, hasty: PlatformApi) -> None:
    platform.answers(SILENCE)
    with pytest.raises(failures.Unavailable):
        hasty.apps()


@pytest.fixture
def self_signed(tmp_path: Path) -> Iterator[FakePlatform]:
    """A server on TLS with a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36_500))
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "both.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = FakePlatform()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.url = server.url.replace("http:", "https:")
    with serving(server) as running:
        yield running


def test_a_log_is_not_read_from_whoever_has_no_certificate(
    platform: FakePlatform, self_signed: FakePlatform, plain: Heroku, api: PlatformApi
) -> None:
    session = Answer({"id": "l1", "logplex_url": f"{self_signed.url}/log"}, 201)
    platform.answers(session, session)
    self_signed.answers(Answer(raw=b"lines"))
    with pytest.raises(failures.Unavailable, match="SSL"):
        api.get_app_log("app")
    assert self_signed.got == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        assert plain.get_app_log("app") == "lines"


def test_a_certificate_that_nobody_vouches_for_means_that_nothing_was_sent(
    self_signed: FakePlatform,
) -> None:
    api = PlatformApi(KEY, self_signed.url, CALM)
    with pytest.raises(failures.Unavailable) as refused:
        api.create_dyno("app", REQUEST)
    assert not refused.value.sent
    assert self_signed.got == []


def test_a_log_is_read_without_showing_the_key(platform: FakePlatform, api: PlatformApi) -> None:
    with serving(FakePlatform()) as logplex:
        logplex.answers(Answer(raw=b"2026 rendezvous.1 hello"))
        platform.answers(Answer({"id": "l1", "logplex_url": f"{logplex.url}/log?token=t"}, 201))
        assert api.get_app_log("app", dyno="rendezvous.1") == "2026 rendezvous.1 hello"
        assert platform.got[0].body["tail"] is False
        assert "Authorization" not in logplex.got[0].headers


def test_a_log_is_not_followed(api: PlatformApi) -> None:
    with pytest.raises(NotImplementedError):
        api.stream_app_log("app")


def test_a_dyno_is_stopped_by_the_action_that_works_for_every_type(
    platform: FakePlatform, plain: Heroku, api: PlatformApi
) -> None:
    platform.answers(Answer({}, 202), Answer({"id": "a", "name": "app"}), Answer(DYNO), Answer({}))
    api.stop_dyno("app", "d1")
    assert (platform.got[0].method, platform.got[0].path) == (
        "POST",
        "/apps/app/dynos/d1/actions/stop",
    )
    assert not any("stop" in name for name in dir(plain))


# What every request has


def test_every_request_has_the_key_and_asks_for_version_3(
    platform: FakePlatform, api: PlatformApi
) -> None:
    platform.answers(Answer(DYNO))
    api.dyno("app", "d1")
    headers = platform.got[0].headers
    assert (headers["Authorization"], headers["Accept"]) == (f"Bearer {KEY}", ACCEPT)


def test_an_address_in_another_spelling_gets_the_key_too(platform: FakePlatform) -> None:
    api = PlatformApi(KEY, platform.url.replace("127.0.0.1", "LOCALHOST") + "/", CALM)
    platform.answers(Answer([]))
    api.dynos("app")
    assert platform.got[0].headers["Authorization"] == f"Bearer {KEY}"
    assert platform.got[0].path == "/apps/app/dynos"
    api.close()


def test_the_key_follows_no_redirect(platform: FakePlatform, api: PlatformApi) -> None:
    with serving(FakePlatform()) as elsewhere:
        platform.answers(Answer(None, 302, {"Location": f"{elsewhere.url}/apps"}))
        with pytest.raises(Failure):
            api.dynos("app")
        assert elsewhere.got == []


def test_the_environment_diverts_nothing(
    platform: FakePlatform, api: PlatformApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(FakePlatform()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        platform.answers(Answer([]))
        api.dynos("app")
        assert proxy.got == []


def test_names_cannot_leave_their_place_in_the_address(
    platform: FakePlatform, api: PlatformApi
) -> None:
    platform.answers(Answer(DYNO))
    api.dyno("app", "../../account?x=1")
    assert platform.got[0].path == "/apps/app/dynos/..%2F..%2Faccount%3Fx%3D1"


def test_an_answer_that_never_ends_is_cut(
    platform: FakePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.launchers.heroku.api.MAX_ANSWER_BYTES", 10)
    api = PlatformApi(KEY, platform.url, CALM)
    platform.answers(Answer([DYNO]))
    with pytest.raises(failures.Unavailable):
        api.dynos("app")
    api.close()


# What is sent and read


def test_a_create_says_all_that_a_dyno_needs(platform: FakePlatform, api: PlatformApi) -> None:
    platform.answers(Answer(dict(DYNO, created_at="2026-01-01T12:00:00Z", news={}), 201))
    request = DynoRequest(command="x y", env={"A": "1"}, time_to_live=60, size="basic")
    made = api.create_dyno("app", request)
    assert platform.got[0].body == {
        "command": "x y",
        "env": {"A": "1"},
        "time_to_live": 60,
        "size": "basic",
        "type": "rendezvous",
        "attach": False,
    }
    assert made == DynoInfo("d1", "rendezvous.1", "x", "starting", "", "Basic", made.created_at)
    assert made.created == 1_767_268_800.0


def test_a_date_that_cannot_be_read_is_none() -> None:
    assert DynoInfo("d1", created_at="yesterday").created is None


@pytest.mark.parametrize(
    ("releases", "version"),
    [
        ([], None),
        ([{"version": 7, "status": "succeeded", "current": True}], 7),
        ([{"version": 8, "status": "failed"}, {"version": 7, "current": True}], 7),
        ([{"version": 8, "status": "pending"}, {"version": 7, "status": "succeeded"}], 7),
    ],
    ids=["none", "one", "newest failed", "newest pending"],
)
def test_the_current_release_is_the_one_that_new_dynos_run(
    platform: FakePlatform, api: PlatformApi, releases: list[dict[str, Any]], version: int | None
) -> None:
    platform.answers(Answer(releases))
    release = api.current_release("app")
    assert (release and release.version) == version


def test_prices_come_from_cents_an_hour_or_a_month(
    platform: FakePlatform, api: PlatformApi
) -> None:
    platform.answers(
        Answer(
            [
                {"name": "basic", "cost": {"cents": 730, "unit": "month"}},
                {"name": "hourly", "cost": {"cents": 50, "unit": "hour"}},
                {"name": "free", "cost": None},
                {"name": "odd", "cost": {"cents": 1, "unit": "fortnight"}},
            ]
        )
    )
    assert [size.usd_per_hour for size in api.dyno_sizes()] == [0.01, 0.5, None, None]


def test_a_list_of_something_else_is_a_failure(platform: FakePlatform, api: PlatformApi) -> None:
    platform.answers(Answer([{"name": "no id"}]))
    with pytest.raises(failures.Unavailable, match="another shape"):
        api.dynos("app")


def test_webhooks_are_made_found_and_ended(platform: FakePlatform, api: PlatformApi) -> None:
    hook = {"id": "w1", "url": "https://g/h", "include": ["dyno"], "level": "notify"}
    platform.answers(Answer(hook, 201), Answer([hook]), Answer(hook))
    made = api.create_webhook("app", "https://g/h", "s3cret", ["dyno"])
    assert api.webhooks("app") == [made]
    api.delete_webhook("app", made.id)
    assert [(got.method, got.path) for got in platform.got] == [
        ("POST", "/apps/app/webhooks"),
        ("GET", "/apps/app/webhooks"),
        ("DELETE", "/apps/app/webhooks/w1"),
    ]
    assert platform.got[0].body == {
        "include": ["dyno"],
        "level": "notify",
        "secret": "s3cret",
        "url": "https://g/h",
    }


def test_config_vars_and_what_is_left_are_read(platform: FakePlatform, api: PlatformApi) -> None:
    platform.answers(Answer({"A": "1"}), Answer({"remaining": 4242}))
    assert api.config_vars("app") == {"A": "1"}
    assert api.ratelimit_remaining() == 4242


# What is learned by the way


def test_what_is_left_is_read_from_each_answer_and_grows_with_time(
    platform: FakePlatform,
) -> None:
    now = [0.0]
    meter = Meter(lambda: now[0])
    api = PlatformApi(KEY, platform.url, CALM, meter)
    seen = [meter.remaining]
    platform.answers(
        Answer([], 200, {"RateLimit-Remaining": "90"}),
        Answer({}, 500, {"RateLimit-Remaining": "80"}),
        Answer([]),
    )
    api.dynos("app")
    seen.append(meter.remaining)
    with pytest.raises(Failure):
        api.dynos("app")
    seen.append(meter.remaining)
    now[0] += 10 * REFILL_S + 0.01
    api.dynos("app")
    seen.append(meter.remaining)
    now[0] += 1e9
    assert [*seen, meter.remaining] == [None, 90, 80, 90, 4500]
    api.close()


def test_a_warning_of_the_platform_is_logged_once(platform: FakePlatform, api: PlatformApi) -> None:
    warned = Answer([], 200, {"X-Heroku-Warning": "old stack", "Warning-Message": "sunset"})
    platform.answers(warned, warned)
    with structlog.testing.capture_logs() as lines:
        api.dynos("app")
        api.dynos("app")
    assert [line["text"] for line in lines] == ["old stack", "sunset"]


# What goes wrong


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthorized", failures.Unauthorized),
        (402, "delinquent", failures.PaymentRequired),
        (403, "forbidden", failures.Forbidden),
        (404, "not_found", failures.NotFound),
        (409, "conflict", failures.Conflict),
        (422, "invalid_params", failures.Invalid),
        (422, "cannot_run_above_limit", failures.AtLimit),
        (403, "cannot_run_above_limit", failures.AtLimit),
        (429, "rate_limit", failures.RateLimited),
        (418, "teapot", failures.Invalid),
    ],
)
def test_a_refusal_has_its_class_the_platforms_words_and_was_not_done(
    platform: FakePlatform, api: PlatformApi, status: int, code: str, kind: type[Failure]
) -> None:
    platform.answers(Answer({"id": code, "message": "said so"}, status))
    with pytest.raises(Failure, match="said so") as refused:
        api.create_dyno("app", REQUEST)
    assert type(refused.value) is kind
    assert not refused.value.sent


@pytest.mark.parametrize(
    "answer",
    [
        Answer({"id": "internal_server_error", "message": "oops"}, 500),
        Answer(raw=b"<html>", status=503),
        Answer(raw=b"<html>", status=201),
        Answer({"no": "id"}, 201),
        SILENCE,
        RESET,
    ],
    ids=["500", "503 of a proxy", "no JSON", "no dyno", "silence", "reset"],
)
def test_a_create_without_a_clear_answer_may_have_been_done(
    platform: FakePlatform, api: PlatformApi, hasty: PlatformApi, answer: Answer
) -> None:
    platform.answers(answer)
    with pytest.raises(failures.Unavailable) as lost:
        (hasty if answer is SILENCE else api).create_dyno("app", REQUEST)
    assert lost.value.sent


def nobody_listens() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    "url", [nobody_listens, lambda: "http://nowhere.invalid"], ids=["refused", "unknown host"]
)
def test_without_a_connection_nothing_was_sent(url: Callable[[], str]) -> None:
    api = PlatformApi(KEY, url(), CALM)
    with pytest.raises(failures.Unavailable) as failed:
        api.create_dyno("app", REQUEST)
    assert not failed.value.sent


def test_a_connection_that_takes_too_long_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args: Any, **_options: Any) -> socket.socket:
        raise TimeoutError

    monkeypatch.setattr("urllib3.util.connection.create_connection", never)
    api = PlatformApi(KEY, "http://127.0.0.1:9", CALM)
    with pytest.raises(failures.Unavailable) as failed:
        api.create_dyno("app", REQUEST)
    assert not failed.value.sent


def test_no_secret_is_in_a_failure_or_its_log(
    platform: FakePlatform, api: PlatformApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = f"{KEY} and {TOKEN}\nare bad " + "x" * 1000
    platform.answers(Answer({"id": "invalid_params", "message": told}, 422), RESET)
    for _ in range(2):
        with pytest.raises(Failure) as failed:
            api.create_dyno("app", REQUEST)
        shown = f"{failed.value!r} {failed.value} {failed.value.__cause__!r} {caplog.text}"
        assert KEY not in shown
        assert TOKEN not in shown
        assert "\n" not in str(failed.value)
        assert len(str(failed.value)) < 300
    assert TOKEN not in repr(REQUEST)
    assert KEY not in repr(vars(api._session)["auth"])


def test_heroku3_is_the_version_whose_traps_these_are() -> None:
    """When this fails, see which of them are closed there by now."""
    assert heroku3.__version__.startswith("5.2")
