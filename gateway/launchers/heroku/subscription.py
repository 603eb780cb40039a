"""An app's webhooks: the platform tells at once what a list would show seconds later."""

from urllib.parse import urlsplit, urlunsplit

from gateway.launchers.heroku.documents import WebhookInfo
from gateway.launchers.heroku.failures import Failure
from gateway.launchers.heroku.platform import Platform

INCLUDE = ("dyno", "api:release", "api:formation")
"""Which events: lives of dynos, and what may change the servers."""

LEVEL = "notify"
"""One try each: what is lost, the reconciler sees."""


async def subscribe(platform: Platform, app: str, url: str, secret: str) -> str | None:
    """See to it that an app's events are sent to us, once.

    The platform never tells a subscription's secret again. So let the address change with the
    secret, by its query: a subscription to the same address with another query is taken for an
    outdated one of ours, and ended.

    Args:
        platform: that runs the app.
        app: whose events.
        url: where to.
        secret: signs them.

    Returns:
        None, or a sentence that says why there is no subscription: lists have to do.
    """
    try:
        known = await platform.webhooks(app)
        ours = [webhook for webhook in known if _place(webhook.url) == _place(url)]
        good = [webhook for webhook in ours if webhook.url == url and _is_complete(webhook)]
        if not good:
            await platform.create_webhook(app, url, secret, INCLUDE)
        for webhook in ours:
            if webhook not in good[:1]:
                await platform.delete_webhook(app, webhook.id)
    except Failure as failure:
        return f"no events of {app}: {str(failure).rstrip('.')}. {failure.advice}"
    return None


def _is_complete(webhook: WebhookInfo) -> bool:
    return webhook.level == LEVEL and set(webhook.include) >= set(INCLUDE)


def _place(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
