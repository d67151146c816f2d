"""The pages for those who look and lead, in a real browser, by keyboard; and what they refuse to whom."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import CHROMIUM, chromium
from serving import PASSWORD, sign_in, workbench
from sqlalchemy import select

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import AccountRow, EventRow, LabelRow, TaskRow
from postgrad.feedback.people import OPERATOR, ROLES, People
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Sample
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import Assigned, NewTask
from postgrad.types import Conversation, Example, Message, SamplingParams

LONG = "**word** `x` " * 16_000
MARKED = "**word** `x` " * 3_800
NUM = 6
needs_browser = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    # Playwright's own event loop outlives its last page by a moment.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def sample(prompt_id: str, text: str) -> Sample:
    return Sample(prompt_id, "r", "secret-stage", "cd" * 32, 3, SamplingParams(max_tokens=8), 7, text, (1,), "stop")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, LabelStore]]:
    """(address, store): one account a role, called after it; label 1 is the labeler's, of a very long answer."""
    url = sqlite_url(Path(tmp_path_factory.mktemp("lead")) / "postgrad.db")
    with LabelStore(url) as store:
        queue, people = LabelQueue(store), People(store)
        for role in ROLES:
            people.add(role, PASSWORD, role, by=OPERATOR)
        people.add("other", PASSWORD, "labeler", by=OPERATOR)
        store.add_round("r", recipe="test")
        names = [f"p{i}" for i in range(NUM)]
        store.add_prompts(Example(n, Conversation((Message("user", f"Say {n}."),))) for n in names)
        first = store.add_samples([sample("p0", f"<script>x</script> {LONG}"), sample("p0", MARKED)])
        pairs = [store.add_samples([sample(n, f"good {n}"), sample(n, f"bad {n}")]) for n in names[1:]]
        asked = store.ask([first, *pairs], purpose="train", round_id="r")
        queue.add([NewTask("compare", c, overlap=3) for c in asked], round_id="r")
        labeler = people.find("labeler").id
        got = queue.claim(labeler)
        assert isinstance(got, Assigned)
        queue.submit(got.id, labeler, {"tiers": [[0], [1]], "strength": 2}, client_key="first", rationale="A remark.")
        with workbench(url) as address:
            yield address, store


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as playwright, chromium(playwright) as browser:
        yield browser


def tab_to(page: Any, name: str) -> None:
    """Press Tab until what is called so has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate(
            "() => (document.activeElement.ariaLabel || document.activeElement.innerText"
            " || document.activeElement.type || '').trim()"
        ) == name:  # fmt: skip
            return
    raise AssertionError(f"Tab does not lead to {name!r}")


def follow(page: Any, name: str, path: str = "") -> None:
    """Enter on what is called so, and wait until it has led where it should."""
    tab_to(page, name)
    page.keyboard.press("Enter")
    if path:
        page.wait_for_url(f"**{path}")


def sees(page: Any, said: str) -> None:
    page.locator(".pg-status", has_text=said).wait_for()


def states(store: LabelStore) -> list[str]:
    with store.reading() as session:
        return list(session.scalars(select(TaskRow.state).order_by(TaskRow.id)))


def test_each_role_gets_its_own_pages_and_no_others(site: tuple[str, LabelStore]) -> None:
    wanted = {
        "admin": "/ /queue /labels /tasks /people",
        "lead": "/ /queue /labels /tasks /people",
        "reviewer": "/ /queue /labels",
        "labeler": "/ /labels",
        "reader": "/labels",
    }
    for role, pages in wanted.items():
        with httpx.Client(base_url=site[0], timeout=60) as client:
            client.post("/auth/login", json={"name": role, "password": PASSWORD}).raise_for_status()
            for page in ("/", "/queue", "/labels", "/tasks", "/people"):
                response = client.get(page)
                sent_to = pages.split()[0] if page not in pages.split() else None
                assert (response.status_code, response.headers.get("location")) == (
                    (200, None) if sent_to is None else (307, sent_to)
                ), (role, page)


def test_nobody_gets_none_and_comes_back_after_signing_in(site: tuple[str, LabelStore]) -> None:
    for page in ("/queue", "/labels/1?x=1", "/tasks", "/people"):
        response = httpx.get(f"{site[0]}{page}")
        assert response.status_code == 307
        assert response.headers["location"].startswith(f"/login?next={page[:5]}")


def test_no_page_stands_in_a_frame_or_loads_anything_from_elsewhere(site: tuple[str, LabelStore]) -> None:
    for page in ("/login", "/healthz", "/auth/me", "/nowhere"):
        headers = httpx.get(f"{site[0]}{page}").headers
        policy = headers["content-security-policy"].split("; ")
        assert {"default-src 'self'", "frame-ancestors 'none'", "connect-src 'self'", "base-uri 'self'"} <= set(policy)
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"


class TestInABrowser:
    pytestmark = needs_browser

    def test_a_lead_walks_through_all_pages_by_keyboard(self, site: tuple[str, LabelStore], browser: Any) -> None:
        address, store = site
        page = sign_in(browser, address, "lead", path="/labels/1")
        broken: list[str] = []
        page.on("console", lambda message: broken.append(message.text) if message.type == "error" else None)
        page.locator(".pg-title", has_text="Label 1").wait_for()
        assert page.locator(".pg-chosen").count() == 1
        assert "secret-stage" in page.content()
        follow(page, "Labels", "/labels")
        page.locator("tbody tr").first.wait_for()
        page.get_by_label("Text in prompts").focus()
        page.keyboard.type("no such text")
        page.keyboard.press("Enter")
        page.wait_for_url("**/labels?*text=no+such+text*")
        page.get_by_text("No label matches.").wait_for()
        follow(page, "Clear", "/labels")
        follow(page, "1", "/labels/1")
        page.locator(".pg-title", has_text="Label 1").wait_for()

        follow(page, "Tasks", "/tasks")
        page.locator("tbody tr").nth(NUM - 1).wait_for()
        page.locator("tbody [role=checkbox]").first.focus()
        page.keyboard.press("Space")
        page.keyboard.press("Home")
        page.locator(".q-btn", has_text="Pause").focus()
        page.keyboard.press("Enter")
        sees(page, "Changed: 1.")
        assert states(store) == ["open"] * (NUM - 1) + ["paused"]
        page.locator("[role=radio]", has_text="all that match").focus()
        page.keyboard.press("Space")
        follow(page, "Close")
        page.get_by_text(f"Close {NUM} tasks? They match: all.").wait_for()
        page.locator(".q-btn:focus", has_text="Yes").wait_for()
        page.keyboard.press("Enter")
        sees(page, f"Changed: {NUM}.")
        assert states(store) == ["closed"] * NUM
        follow(page, "Open")
        page.get_by_text("Open 6 tasks?").wait_for()
        page.locator(".q-btn:focus", has_text="Yes").wait_for()
        page.keyboard.press("Enter")
        sees(page, f"Changed: {NUM}.")
        with store.reading() as session:
            lead = session.scalars(select(AccountRow).where(AccountRow.name == "lead")).one().rater_id
            last = session.scalars(select(EventRow).order_by(EventRow.seq.desc()).limit(1)).one()
            assert (last.actor, last.action, last.object) == (lead, "open", f"{NUM} tasks")

        follow(page, "Queue", "/queue")
        page.get_by_text("worked out in").wait_for()

        follow(page, "People", "/people")
        page.locator("tbody tr").first.wait_for()
        follow(page, "Invite")
        link = page.locator(".pg-invitation input")
        link.wait_for()
        assert link.input_value().startswith(f"{address}/login?invitation=")
        page.keyboard.press("Escape")
        assert page.locator("[aria-label='Manage admin']").count() == 0
        follow(page, "Manage other")
        page.get_by_label("Why pause?").focus()
        page.keyboard.type("on leave")
        page.keyboard.press("Enter")
        sees(page, "Done.")
        assert People(store).find("other").reason == "on leave"
        follow(page, "Sign out", "/login")
        page.locator("#pg-login").wait_for()
        assert broken == []

    def test_a_labeler_sees_their_label_without_its_source(self, site: tuple[str, LabelStore], browser: Any) -> None:
        page = sign_in(browser, site[0], "labeler", path="/labels/1")
        page.locator(".pg-answer").first.wait_for()
        assert "secret-stage" not in page.content()
        assert "cdcdcd" not in page.content()
        assert page.locator(".pg-answer script").count() == 0
        assert page.locator(".pg-nav a").all_inner_texts() == ["Label", "Labels"]

    def test_answers_of_200_kilobytes_are_shown_whole_and_soon(
        self, site: tuple[str, LabelStore], browser: Any
    ) -> None:
        page = sign_in(browser, site[0], "lead")
        for path in ("/", "/labels/1"):
            began = time.monotonic()
            page.goto(f"{site[0]}{path}")
            long = page.locator(".pg-answer", has_text="<script>x</script>").first
            long.wait_for()
            assert long.inner_text().count("word") == 16_000
            page.keyboard.press("?" if path == "/" else "Tab")
            assert time.monotonic() - began < 30

    def test_an_open_page_stops_when_its_session_ends(self, site: tuple[str, LabelStore], browser: Any) -> None:
        address, store = site
        people = People(store)
        ada = people.add("ada", PASSWORD, "labeler", by=OPERATOR)
        page = sign_in(browser, address, "ada")
        page.locator(".pg-answer").first.wait_for()
        people.end_sessions(ada.id, by=OPERATOR)
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        sees(page, "this session or token is unknown or has ended")
        page.keyboard.press("g")
        page.wait_for_timeout(500)
        assert page.locator(".pg-guidelines").count() == 0
        with store.reading() as session:
            assert list(session.scalars(select(LabelRow.id).where(LabelRow.rater_id == ada.id))) == []

    def test_an_open_page_stops_when_its_account_is_paused_or_its_role_is_taken(
        self, site: tuple[str, LabelStore], browser: Any
    ) -> None:
        address, store = site
        people = People(store)
        lea = people.add("lea", PASSWORD, "lead", by=OPERATOR)
        tasks = sign_in(browser, address, "lea", path="/tasks")
        tasks.locator("tbody tr").first.wait_for()
        members = tasks.context.new_page()
        members.goto(f"{address}/people")
        members.locator("tbody tr").first.wait_for()
        before = states(store), len(people.everyone())
        people.change_role(lea.id, "labeler", by=OPERATOR)
        tasks.locator("tbody [role=checkbox]").first.click()
        tasks.locator(".q-btn", has_text="Close").click()
        sees(tasks, "a labeler has no permission to manage tasks")
        people.pause(lea.id, "on leave", by=OPERATOR)
        members.locator(".q-btn", has_text="Invite").click()
        sees(members, "this account is paused: on leave")
        assert (states(store), len(people.everyone())) == before
