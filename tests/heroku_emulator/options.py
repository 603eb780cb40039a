"""How the emulated platform behaves. May be changed while it runs."""

from dataclasses import dataclass


@dataclass(slots=True)
class Options:
    """Defaults are Heroku's, except that dynos boot at once.

    Attributes:
        boot_delay: seconds from a dyno's making to its process, drawn between the two.
        seed: of boot delays, lost webhooks and dyno names.
        stop_grace: seconds from SIGTERM to SIGKILL.
        longest_life: seconds after which any dyno is cycled.
        invisible_s: seconds after its making in which a dyno's info is a 404.
        page_size: items in a page when nobody says how many.
        rate_limit: requests of the account at once.
        rate_refill: requests that come back in a second.
        hold_s: an answer that times out on purpose is given up after so long.
        webhook_loss: share of the webhooks that is lost.
        webhook_retry_s: pause before the second try of a `sync` webhook; then it doubles.
    """

    boot_delay: tuple[float, float] = (0.0, 0.0)
    seed: int = 0
    stop_grace: float = 30.0
    longest_life: float = 86_400.0
    invisible_s: float = 0.0
    page_size: int = 200
    rate_limit: int = 4_500
    rate_refill: float = 75 / 60
    hold_s: float = 120.0
    webhook_loss: float = 0.0
    webhook_retry_s: float = 1.0
