"""Who is asking: sessions in a cookie, API tokens in a header, or the one person of local mode.

What a browser does on its own, for a page of somebody else, must change nothing: a request that changes something
names its origin, and with a cookie also repeats a secret that only our own pages know (OWASP, Cross-Site Request
Forgery Prevention Cheat Sheet, "HMAC based token pattern").
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import BaseModel, Field, SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from postgrad.errors import AccessError
from postgrad.feedback.people import SESSION_LIFE, Account, People, Permission, Role
from postgrad.web.errors import Refused, explain_refusals
from postgrad.web.limits import SlidingWindow

COOKIE: Final = "postgrad_session"
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_FAILURE_WINDOW_S: Final = 900.0
_FAILURES_OF_A_NAME: Final = 10
_FAILURES_OF_AN_ADDRESS: Final = 100
"""More than of a name: an office has one address."""


class Credentials(BaseModel):
    name: Annotated[str, Field(max_length=256)]
    password: SecretStr


class Acceptance(Credentials):
    invitation: SecretStr


class NewPassword(BaseModel):
    old: SecretStr
    new: SecretStr


class Invitation(BaseModel):
    role: Role


class NewToken(BaseModel):
    name: str
    scope: Role
    days: int = 90


class Auth:
    """Signs people in to one application and tells its routes who they are.

    Args:
        people: of the store behind the application.
        local: everyone is the account `me`; only for a server that listens on loopback alone.
        requests_per_minute: of one account.
    """

    def __init__(self, people: People, *, local: bool = False, requests_per_minute: int = 1200) -> None:
        self.people = people
        self.local = people.local() if local else None
        self._requests = SlidingWindow(requests_per_minute, 60.0)
        self._names = SlidingWindow(_FAILURES_OF_A_NAME, _FAILURE_WINDOW_S)
        self._addresses = SlidingWindow(_FAILURES_OF_AN_ADDRESS, _FAILURE_WINDOW_S)

    def install(self, app: FastAPI) -> None:
        """Guard everything that the application serves, pages and sockets too, and add the routes under /auth."""
        explain_refusals(app)
        app.add_middleware(_Door, local=self.local is not None)
        app.include_router(_routes(self))

    def current(self, request: Request) -> Account:
        """Who asks; a dependency for routes, which asks the store once for each request.

        Raises:
            Refused: nobody, a forged request, or one too many.
        """
        known: Account | None = self.local or getattr(request.state, "account", None)
        if known is not None:
            return known
        bearer = request.headers.get("authorization")
        account = self._holder(request)
        if bearer is None and request.method not in _SAFE:
            if request.headers.get("origin") != origin_of(request.scope):
                raise Refused(403, "origin", "this request does not say that it comes from a page of this server")
            given = request.headers.get("x-csrf-token", "")
            if not hmac.compare_digest(given.encode(), csrf_token(token_of(request)).encode()):
                raise Refused(403, "csrf", "this request lacks the page's X-CSRF-Token; reload the page")
        _admit(self._requests, account.id)
        request.state.account = account
        return account

    def allowed(self, permission: Permission) -> Callable[[Request], Account]:
        """A dependency: as `current`, but refuses who has no such permission."""

        def check(request: Request) -> Account:
            account = self.current(request)
            account.require(permission)
            return account

        return check

    @contextmanager
    def guessing(self, request: Request, name: str) -> Iterator[None]:
        """Around the check of a secret: only so many that fail, of one name and from one address.

        Raises:
            Refused: with the seconds to wait, or because the secret is wrong.
        """
        name, address = name.strip().casefold(), _address(request)
        _admit(self._addresses, address)
        _admit(self._names, name)
        try:
            yield
        except AccessError as e:
            raise Refused(401, "wrong_credentials", str(e)) from None
        self._names.give_back(name)
        self._addresses.give_back(address)

    def _holder(self, request: Request) -> Account:
        try:
            return self.people.who(token_of(request))
        except AccessError as e:
            raise Refused(401, "not_signed_in", str(e)) from None


def token_of(request: Request) -> str:
    """The token that a request brings; the header counts before the cookie."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return request.cookies.get(COOKIE, "")
    return token.strip() if scheme.lower() == "bearer" else ""


def csrf_token(session: str) -> str:
    """What our own pages send back in X-CSRF-Token; only who holds the session can work it out."""
    return hmac.new(session.encode(), b"postgrad csrf", hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether a host, perhaps with a port, is this machine to itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _routes(auth: Auth) -> APIRouter:
    router = APIRouter(prefix="/auth", tags=["auth"], dependencies=[Depends(_unstored)])
    current, inviting = Depends(auth.current), Depends(auth.allowed("manage_people"))
    people = auth.people

    @router.post("/login")
    def login(request: Request, response: Response, body: Credentials) -> dict[str, Any]:
        password = body.password.get_secret_value()
        with auth.guessing(request, body.name):
            token = people.sign_in(body.name, password)
        return _begin(request, response, token, people.who(token))

    @router.post("/accept")
    def accept(request: Request, response: Response, body: Acceptance) -> dict[str, Any]:
        invitation, password = body.invitation.get_secret_value(), body.password.get_secret_value()
        with auth.guessing(request, body.name):
            token = people.accept(invitation, body.name, password)
        return _begin(request, response, token, people.who(token))

    @router.post("/logout")
    def logout(request: Request, response: Response, account: Account = current) -> dict[str, Any]:
        people.sign_out(token_of(request))
        response.delete_cookie(COOKIE, path="/")
        return {}

    @router.get("/me")
    def me(request: Request, account: Account = current) -> dict[str, Any]:
        return _shown(account, "" if auth.local else token_of(request))

    @router.post("/password")
    def password(request: Request, body: NewPassword, account: Account = current) -> dict[str, Any]:
        with auth.guessing(request, account.name):
            people.change_password(token_of(request), body.old.get_secret_value(), body.new.get_secret_value())
        return {}

    @router.post("/invitations")
    def invite(body: Invitation, account: Account = inviting) -> dict[str, Any]:
        return {"invitation": people.invite(body.role, by=account)}

    @router.get("/tokens")
    def tokens(account: Account = current) -> dict[str, Any]:
        return {"tokens": people.tokens(by=account)}

    @router.post("/tokens")
    def make_token(request: Request, body: NewToken, account: Account = current) -> dict[str, Any]:
        if "authorization" in request.headers:
            raise Refused(403, "token", "a token makes no tokens, or it would never expire; sign in")
        return {"token": people.make_token(body.name, body.scope, body.days, by=account)}

    @router.delete("/tokens/{token_id}")
    def revoke(token_id: str, account: Account = current) -> dict[str, Any]:
        people.revoke(token_id, by=account)
        return {}

    return router


def _begin(request: Request, response: Response, token: str, account: Account) -> dict[str, Any]:
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(SESSION_LIFE.total_seconds()),
        path="/",
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return _shown(account, token)


def _shown(account: Account, token: str) -> dict[str, Any]:
    return {
        "id": account.id,
        "name": account.name,
        "role": account.role,
        "state": account.state,
        "reason": account.reason,
        "permissions": sorted(account.permissions),
        "csrf": csrf_token(token) if token else "",
    }


def _unstored(response: Response) -> None:
    response.headers["cache-control"] = "no-store"


def _admit(window: SlidingWindow, key: str) -> None:
    wait = window.take(key)
    if wait:
        raise Refused(429, "too_many", "too many requests; try again later", retry_after_s=wait)


def _address(request: Request) -> str:
    """Where a request comes from; of IPv6 the network, because one person has all of it."""
    host = request.client.host if request.client else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return address.exploded[:19] if isinstance(address, IPv6Address) else host


def origin_of(scope: Scope) -> str:
    """How a browser names the site that a request was sent to."""
    secure = scope["scheme"] in ("https", "wss")
    return f"{'https' if secure else 'http'}://{Headers(scope=scope).get('host', '')}"


class _Door:
    """Turns away what a page of another site sends, before anything of ours sees it.

    A browser names the origin of every request that changes something and of every socket. In local mode, where no
    secret tells people apart, the host must be loopback too: a name that a stranger points here is not (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, local: bool) -> None:
        self._app = app
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await refusal.response()(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.code})

    def _refusal(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        if self._local and not is_loopback(headers.get("host", "")):
            return Refused(403, "host", "this server answers on localhost only; open http://localhost or 127.0.0.1")
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE
        if changes and headers.get("origin", origin_of(scope)) != origin_of(scope):
            return Refused(403, "origin", "this request comes from a page of another site")
        return None
