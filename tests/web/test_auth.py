"""Through ASGI, with a real store: what a browser, a script and a hostile page can do."""

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, WebSocket
from sqlalchemy import update

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import TokenRow
from postgrad.feedback import passwords
from postgrad.feedback.people import OPERATOR, Account, People, Role
from postgrad.feedback.store import LabelStore
from postgrad.web import limits
from postgrad.web.auth import COOKIE, Auth, csrf_token, is_loopback

PASSWORD = "a horse, a staple"
OTHER = "another horse entirely"
SITE = "http://labels.example"


class Browser:
    """Keeps cookies, and sends what our own pages send unless told otherwise."""

    def __init__(self, app: FastAPI, *, site: str = SITE, address: str = "192.0.2.7") -> None:
        self.app, self.site, self.address = app, site, address
        self.cookies = httpx.Cookies()
        self.csrf = ""

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """A header of the value "-" is left out."""
        own = {"origin": self.site, "x-csrf-token": self.csrf} if method not in ("GET", "HEAD") else {}
        given = own | {name.replace("_", "-"): value for name, value in headers.items()}

        async def sent() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(self.address, 1))
            async with httpx.AsyncClient(transport=transport, base_url=self.site, cookies=self.cookies) as client:
                response = await client.request(
                    method, path, json=body, headers={n: v.encode("latin-1") for n, v in given.items() if v != "-"}
                )
                self.cookies = client.cookies
                return response

        return asyncio.run(sent())

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.send("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return self.send("POST", path, body or {}, **headers)

    def login(self, name: str, password: str = PASSWORD) -> httpx.Response:
        response = self.post("/auth/login", {"name": name, "password": password})
        self.csrf = response.json().get("csrf", "")
        return response


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", (2, 8, 1))


@pytest.fixture
def people(labels_url: str) -> Iterator[People]:
    with LabelStore(labels_url) as store:
        yield People(store)


@pytest.fixture
def app(people: People) -> FastAPI:
    return application(people)


def application(people: People, *, local: bool = False, requests_per_minute: int = 1200) -> FastAPI:
    app = FastAPI()
    auth = Auth(people, local=local, requests_per_minute=requests_per_minute)
    auth.install(app)
    labelling, asking = Depends(auth.allowed("label")), Depends(auth.current)

    @app.post("/labels")
    def label(account: Account = labelling) -> dict[str, str]:
        return {"by": account.id}

    @app.post("/twice")
    def twice(labeler: Account = labelling, same: Account = asking) -> dict[str, bool]:
        return {"same": labeler == same}

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    return app


def add(people: People, name: str, role: Role = "labeler") -> Account:
    return people.add(name, PASSWORD, role, by=OPERATOR)


def code(response: httpx.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "code"}
    return response.status_code, error["code"]


def test_a_labeler_signs_in_labels_and_signs_out(people: People, app: FastAPI) -> None:
    ada, browser = add(people, "Ada"), Browser(app)
    assert code(browser.get("/auth/me")) == (401, "not_signed_in")
    assert browser.login("Ada").json()["permissions"] == ["label"]
    assert browser.get("/auth/me").json() == {
        "id": ada.id, "name": "Ada", "role": "labeler", "state": "active", "reason": "", "permissions": ["label"],
        "csrf": browser.csrf,
    }  # fmt: skip
    assert browser.post("/labels").json() == {"by": ada.id}
    stolen = browser.cookies[COOKIE]
    assert browser.post("/auth/logout").status_code == 200
    assert COOKIE not in browser.cookies
    browser.cookies.set(COOKIE, stolen)
    assert code(browser.get("/auth/me")) == (401, "not_signed_in")


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(people: People, app: FastAPI) -> None:
    add(people, "Ada")
    plain = Browser(app).login("Ada")
    assert plain.headers["cache-control"] == "no-store"
    flags = {part.strip().lower() for part in plain.headers["set-cookie"].split(";")[1:]}
    assert flags == {"httponly", "samesite=lax", "path=/", "max-age=43200"}
    secure = Browser(app, site="https://labels.example").login("Ada").headers["set-cookie"]
    assert "; secure" in secure.lower()


def test_a_wrong_password_and_a_wrong_name_get_the_same_answer(people: People, app: FastAPI) -> None:
    add(people, "Ada")
    answers = [Browser(app).login("Ada", OTHER), Browser(app).login("Eve", PASSWORD), Browser(app).login("Ada", "")]
    assert [code(a) for a in answers] == [(401, "wrong_credentials")] * 3
    assert len({a.content for a in answers}) == 1
    assert all("set-cookie" not in a.headers for a in answers)


def test_an_expired_session_is_refused(people: People, app: FastAPI) -> None:
    add(people, "Ada")
    browser = Browser(app)
    browser.login("Ada")
    with people.store.writing() as session:
        session.execute(update(TokenRow).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert code(browser.post("/labels")) == (401, "not_signed_in")


def test_a_request_with_a_cookie_needs_the_pages_secret(people: People, app: FastAPI) -> None:
    add(people, "Ada")
    browser = Browser(app)
    browser.login("Ada")
    for forged in ("-", "", "x" * 64, csrf_token("another session"), "é"):
        assert code(browser.post("/labels", x_csrf_token=forged)) == (403, "csrf")
    assert browser.post("/labels").status_code == 200


def test_a_request_from_a_page_of_another_site_is_refused(people: People, app: FastAPI) -> None:
    add(people, "Ada")
    browser = Browser(app)
    browser.login("Ada")
    for origin in ("http://evil.example", "https://labels.example", "http://labels.example:8080", "null", "", "-"):
        assert code(browser.post("/labels", origin=origin)) == (403, "origin")
    assert code(browser.send("DELETE", "/auth/tokens/x", origin="http://evil.example")) == (403, "origin")
    login = {"name": "Ada", "password": PASSWORD}
    assert code(Browser(app).post("/auth/login", login, origin="http://evil.example")) == (403, "origin")


def test_a_script_with_a_token_needs_neither(people: People, app: FastAPI) -> None:
    ada, browser = add(people, "Ada"), Browser(app)
    browser.login("Ada")
    token = browser.post("/auth/tokens", {"name": "laptop", "scope": "labeler", "days": 7}).json()["token"]
    script, bearer = Browser(app), {"authorization": f"Bearer {token}", "origin": "-", "x_csrf_token": "-"}
    assert script.post("/labels", **bearer).json() == {"by": ada.id}
    shown = {t["kind"]: t for t in browser.get("/auth/tokens").json()["tokens"]}
    assert set(shown) == {"session", "api"}
    assert shown["api"].keys() == {"id", "kind", "name", "scope", "expires_at", "created_at"}
    assert (shown["api"]["name"], shown["api"]["scope"]) == ("laptop", "labeler")
    assert code(script.post("/auth/tokens", {"name": "heir", "scope": "labeler"}, **bearer)) == (403, "token")
    assert browser.send("DELETE", f"/auth/tokens/{shown['api']['id']}").status_code == 200
    assert code(script.post("/labels", **bearer)) == (401, "not_signed_in")


def test_the_header_counts_and_not_the_cookie_beside_it(people: People, app: FastAPI) -> None:
    add(people, "Ada")
    browser = Browser(app)
    browser.login("Ada")
    for header in ("Bearer nonsense", f"Basic {browser.cookies[COOKIE]}", "Bearer", "Bearer  "):
        assert code(browser.post("/labels", authorization=header, origin="-")) == (401, "not_signed_in")


def test_a_token_of_a_larger_scope_than_its_owner_is_refused(people: People, app: FastAPI) -> None:
    add(people, "Ada", "reviewer")
    browser = Browser(app)
    browser.login("Ada")
    for scope in ("admin", "lead"):
        assert code(browser.post("/auth/tokens", {"name": "t", "scope": scope})) == (403, "forbidden")
    assert code(browser.post("/auth/tokens", {"name": "t", "scope": "emperor"})) == (400, "invalid")
    assert code(browser.post("/auth/tokens", {"name": "t", "scope": "reader", "days": 400})) == (400, "invalid")
    reader = browser.post("/auth/tokens", {"name": "t", "scope": "reader"}).json()["token"]
    assert code(Browser(app).post("/labels", authorization=f"Bearer {reader}")) == (403, "forbidden")


def test_an_invitation_works_once(people: People, app: FastAPI) -> None:
    add(people, "Lea", "lead")
    lead, guest, thief = Browser(app), Browser(app), Browser(app)
    lead.login("Lea")
    invitation = lead.post("/auth/invitations", {"role": "reviewer"}).json()["invitation"]
    accepted = guest.post("/auth/accept", {"invitation": invitation, "name": "Rob", "password": PASSWORD})
    guest.csrf = accepted.json()["csrf"]
    assert accepted.json()["role"] == "reviewer"
    assert guest.post("/labels").status_code == 200
    again = thief.post("/auth/accept", {"invitation": invitation, "name": "Eve", "password": PASSWORD})
    assert code(again) == (401, "wrong_credentials")
    assert "used" in again.json()["error"]["message"]
    assert sorted(a.name for a in people.everyone()) == ["Lea", "Rob"]


def test_a_lead_cannot_raise_anybody_to_lead_or_admin(people: People, app: FastAPI) -> None:
    add(people, "Lea", "lead")
    browser = Browser(app)
    browser.login("Lea")
    for role in ("lead", "admin"):
        assert code(browser.post("/auth/invitations", {"role": role})) == (403, "forbidden")
    labeler = Browser(app)
    add(people, "Ada")
    labeler.login("Ada")
    assert code(labeler.post("/auth/invitations", {"role": "labeler"})) == (403, "forbidden")
    assert {a.state for a in people.everyone()} == {"active"}


def test_who_is_paused_reads_why_and_labels_nothing(people: People, app: FastAPI) -> None:
    ada, browser = add(people, "Ada"), Browser(app)
    people.pause(ada.id, "too fast", by=OPERATOR)
    assert browser.login("Ada").json()["reason"] == "too fast"
    refused = browser.post("/labels")
    assert code(refused) == (403, "forbidden")
    assert refused.json()["error"]["message"] == "this account is paused: too fast"


def test_a_new_password_is_the_password_from_then_on(people: People, app: FastAPI) -> None:
    add(people, "Ada")
    here, there = Browser(app), Browser(app)
    here.login("Ada"), there.login("Ada")
    assert code(here.post("/auth/password", {"old": OTHER, "new": OTHER})) == (401, "wrong_credentials")
    assert code(here.post("/auth/password", {"old": PASSWORD, "new": "short"})) == (400, "invalid")
    assert here.post("/auth/password", {"old": PASSWORD, "new": OTHER}).status_code == 200
    assert here.get("/auth/me").status_code == 200
    assert code(there.get("/auth/me")) == (401, "not_signed_in")
    assert Browser(app).login("Ada", OTHER).status_code == 200


def test_ten_wrong_passwords_close_a_name_for_a_quarter_of_an_hour(
    people: People, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(people, "Ada"), add(people, "Bob")
    now = 1000.0
    monkeypatch.setattr(limits, "monotonic", lambda: now)
    for i in range(10):
        assert Browser(app, address=f"192.0.2.{i}").login(" ADA "[i % 2 :], OTHER).status_code == 401
    refused = Browser(app, address="192.0.2.99").login("Ada")
    assert code(refused) == (429, "too_many")
    assert refused.headers["retry-after"] == "900"
    assert Browser(app).login("Bob").status_code == 200
    now += 898.5
    assert Browser(app).login("Ada").headers["retry-after"] == "2"
    now += 1.5
    assert Browser(app).login("Ada").status_code == 200


def test_an_address_that_tries_many_names_is_closed_and_an_office_that_signs_in_is_not(
    people: People, app: FastAPI
) -> None:
    add(people, "Ada")
    for _ in range(110):
        assert Browser(app, address="2001:db8::1").login("Ada").status_code == 200
    for i in range(100):
        assert Browser(app, address=f"2001:db8::{i:x}").login(f"name {i}", OTHER).status_code == 401
    assert code(Browser(app, address="2001:db8::ffff").login("Ada")) == (429, "too_many")
    assert Browser(app, address="2001:db8:0:1::1").login("Ada").status_code == 200


def test_an_account_that_asks_too_often_waits(people: People) -> None:
    add(people, "Ada"), add(people, "Bob")
    app = application(people, requests_per_minute=3)
    ada, bob = Browser(app), Browser(app)
    ada.login("Ada"), bob.login("Bob")
    assert [ada.get("/auth/me").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert 1 <= int(ada.get("/auth/me").headers["retry-after"]) <= 60
    assert bob.get("/auth/me").status_code == 200


def test_a_request_whose_account_is_asked_for_twice_counts_once(people: People) -> None:
    add(people, "Ada")
    browser = Browser(application(people, requests_per_minute=2))
    browser.login("Ada")
    assert [browser.post("/twice").json() for _ in range(2)] == [{"same": True}] * 2
    assert code(browser.post("/twice")) == (429, "too_many")


def test_a_reader_labels_nothing(people: People, app: FastAPI) -> None:
    add(people, "Rea", "reader")
    browser = Browser(app)
    browser.login("Rea")
    assert code(browser.post("/labels")) == (403, "forbidden")


def test_counts_that_nobody_needs_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(limits, "monotonic", lambda: now)
    monkeypatch.setattr(limits, "_SWEEP_ABOVE", 100)
    window = limits.SlidingWindow(1, 60)
    for i in range(1000):
        assert window.take(str(i)) == 0
        now += 1
    assert len(window._taken) <= 162
    assert [window.take("999"), window.take("999")] == [59, 59]
    now += 59
    assert [window.take("999"), window.take("999")] == [0, 60]


def test_no_answer_and_no_log_repeats_a_password(
    people: People, app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    add(people, "Ada")
    browser = Browser(app)
    said = browser.login("Ada").text + browser.get("/auth/me").text
    said += browser.post("/auth/login", {"name": "Ada", "password": [PASSWORD]}).text
    said += browser.post("/auth/login", {"name": 1, "password": PASSWORD}).text
    said += browser.post("/auth/accept", {"invitation": "x", "name": "y", "password": PASSWORD}).text
    assert PASSWORD not in said + caplog.text
    assert browser.cookies[COOKIE] not in said + caplog.text


def test_a_store_that_is_locked_is_worth_another_try(tmp_path: Path) -> None:
    with LabelStore(sqlite_url(tmp_path / "labels.db"), busy_timeout_s=0.05) as store:
        add(People(store), "Ada")
        app = application(People(store))
        other = sqlite3.connect(tmp_path / "labels.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        refused = Browser(app).login("Ada")
        other.close()
        assert code(refused) == (503, "store_unavailable")
        assert Browser(app).login("Ada").status_code == 200


def test_bodies_that_are_none_get_one_sentence(app: FastAPI) -> None:
    refused = Browser(app).post("/auth/login", {"name": "x" * 300, "password": "y"})
    assert code(refused) == (400, "invalid")
    assert refused.json()["error"]["message"] == "name: String should have at most 256 characters"


def test_in_local_mode_everyone_on_this_machine_is_me(people: People) -> None:
    app = application(people, local=True)
    for site in ("http://127.0.0.1:8001", "http://localhost:8001", "http://[::1]:8001"):
        browser = Browser(app, site=site)
        assert browser.post("/labels", x_csrf_token="-").json() == {"by": "me"}
        assert browser.post("/labels", origin="-").status_code == 200
        assert browser.get("/auth/me").json()["permissions"][0] == "adjudicate"
        assert code(browser.post("/labels", origin="http://evil.example")) == (403, "origin")
        assert code(browser.post("/labels", origin="null")) == (403, "origin")


def test_in_local_mode_a_name_that_points_here_is_not_enough(people: People) -> None:
    app = application(people, local=True)
    for host in ("evil.example", "evil.example:8001", "localhost.evil.example", "127.0.0.1.evil.example", "[::2]", ""):
        for method in ("GET", "POST"):
            assert code(Browser(app, site="http://localhost").send(method, "/labels", host=host, origin="-")) == (
                403, "host",
            )  # fmt: skip


def test_loopback_is_told_from_everything_else() -> None:
    assert all(map(is_loopback, ("localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:80", "[::1]:80")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.1", "[::]", "example.org", "", "[", "::1::", "user@evil")))


def socket_answer(app: FastAPI, headers: dict[str, str]) -> str:
    """The first message with which a socket is answered."""
    scope = {
        "type": "websocket", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "ws", "path": "/socket",
        "raw_path": b"/socket", "root_path": "", "query_string": b"", "subprotocols": [], "client": ("192.0.2.7", 1),
        "server": ("labels.example", 80), "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return str(sent[0]["type"])


def test_a_socket_opened_by_another_sites_page_is_closed(people: People, app: FastAPI) -> None:
    assert socket_answer(app, {"host": "labels.example", "origin": SITE}) == "websocket.accept"
    assert socket_answer(app, {"host": "labels.example", "origin": "http://evil.example"}) == "websocket.close"
    local = application(people, local=True)
    assert socket_answer(local, {"host": "localhost:1", "origin": "http://localhost:1"}) == "websocket.accept"
    assert socket_answer(local, {"host": "evil.example", "origin": "http://evil.example"}) == "websocket.close"
