"""The console logs in and out: `/console/login`, `/console/logout`, `/console/me`."""

from aiohttp import web

from gateway.ops.admin import asking
from gateway.ops.admin.guard import Guard
from gateway.ops.admin.problems import HEADERS, Problem, answer
from gateway.ops.admin.shapes import SignedIn, SignIn


class SigningIn:
    """Handlers of the three; whoever serves them turns `Problem` into an answer.

    Args:
        guard: knows the key and the cookie.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def login(self, request: web.Request) -> web.Response:
        """Take the key, give the cookie.

        Raises:
            Problem: 400, 408, 413 or 415 for the body; 401 for the key; 403 for a foreign page, or
                if the API is closed; 429 for too many attempts.
        """
        guard, source = self._guard, self._guard.source(request)
        guard.check_open()
        guard.check_page(request, unsafe=True)
        given = await asking.body(request, SignIn)
        await guard.throttle(source)
        if not guard.is_key(given.key):
            guard.emit("login_failed", request.path, source)
            raise Problem(401, "that is not the admin key (ADMIN_KEY of the gateway)")
        guard.emit("login", request.path, source)
        response = web.Response(status=204, headers=HEADERS)
        guard.let_in(request, response)
        return response

    async def logout(self, request: web.Request) -> web.Response:
        """Take the cookie back.

        Raises:
            Problem: 403.
        """
        self._guard.check_open()
        self._guard.check_page(request, unsafe=True)
        response = web.Response(status=204, headers=HEADERS)
        self._guard.let_out(request, response)
        return response

    async def me(self, request: web.Request) -> web.Response:
        """Tell whether the cookie is good.

        Raises:
            Problem: 403.
        """
        self._guard.check_open()
        return answer(SignedIn(self._guard.logged_in(request)))
