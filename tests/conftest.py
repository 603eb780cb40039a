"""What all tests share."""

import asyncio


def pytest_configure() -> None:
    """Leave no event loop lying about.

    Below Python 3.14 pytest-asyncio's first look for a loop makes one and never closes it, and
    `filterwarnings = error` then fails whichever test the garbage collector finds it in.
    """
    asyncio.set_event_loop(None)
