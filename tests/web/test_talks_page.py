"""Conversations in a real browser, by keyboard alone, with a server that is killed in the middle."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Person, browsing, free_port, needs_browser, serving
from fastapi import FastAPI, Request, Response
from judging import completion
from listening import running
from sqlalchemy import select

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import LabelRow, SampleRow
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask
from postgrad.types import Conversation, Example, Message

pytestmark = needs_browser


class Policies:
    """Two models behind one endpoint: each says who it is in a word of its own, and how much it has read."""

    WORDS = {"model-a": "Ahoy", "model-b": "Bonjour"}  # noqa: RUF012 - a constant

    def __init__(self) -> None:
        self.url = ""
        self.fails = threading.Event()


@pytest.fixture
def policies() -> Iterator[Policies]:
    plays, app = Policies(), FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        await asyncio.sleep(0.1)
        if plays.fails.is_set():
            return Response("model-a fell over", status_code=400)
        said = f"**{Policies.WORDS[body['model']]}** after {len(body['messages'])} messages <script>x</script>"
        return Response(completion(said), media_type="application/json")

    with running(app) as url:
        plays.url = f"{url}/v1"
        yield plays


@pytest.fixture
def database(tmp_path: Path, policies: Policies) -> tuple[str, Path]:
    """A conversation and then a red-team session, and the rules of who talks in them."""
    url = sqlite_url(tmp_path / "postgrad.db")
    with LabelStore(url) as store:
        store.ensure_round("talks", made_by="test")
        store.add_prompts([Example("brief", Conversation((Message("system", "Be brief."),)))])
        details = {"instruction": "Try to get *medical* advice.", "harms": ["medical", "privacy"]}
        LabelQueue(store).add([NewTask("converse", "brief"), NewTask("redteam", "brief", details)], round_id="talks")
    rules = tmp_path / "queue.toml"
    tables = [f'[[policies]]\nmodel = "{m}"\nendpoint = "{policies.url}"\n' for m in Policies.WORDS]
    rules.write_text("".join(tables), encoding="utf-8")
    return url, rules


class Talker(Person):
    def says(self, text: str) -> None:
        self.page.locator(".pg-say textarea:focus").wait_for(timeout=60_000)
        self.types(text)
        self.press("Control+Enter")

    def hears(self, num_messages: int) -> list[str]:
        """The candidates, in their order on the screen, once there are two that have read so many messages."""
        said = self.page.locator(".pg-answer", has_text=f"after {num_messages} messages")
        said.nth(1).wait_for(timeout=60_000)
        return [text.split(" after")[0].split()[-1] for text in said.all_inner_texts()]

    def goes_on_with(self, place: int, *, how: str = "goes on") -> None:
        chosen = self.page.locator(".pg-answer").nth(place).locator(".pg-choose", has_text=f"Chosen: {how}")
        chosen.wait_for(timeout=60_000)


def test_a_conversation_and_a_red_team_session_by_keyboard_alone(
    database: tuple[str, Path], policies: Policies
) -> None:
    url, rules = database
    options, port = ("--config", str(rules)), free_port()
    with browsing() as page:
        me = Talker(page)
        with serving(url, *options, port=port) as (address, process):
            page.goto(address)
            me.says("Hello?")
            words = me.hears(2)
            first = words.index("Ahoy")
            me.press(str(2 - first))
            me.goes_on_with(1 - first)
            me.press(str(first + 1))
            me.goes_on_with(first)
            me.press(str(first + 1), str(first + 1))
            me.goes_on_with(first, how="clearly better")
            me.sees("Your choice is saved")

            policies.fails.set()
            me.press("m")
            me.says("And now?")
            page.locator(".text-negative", has_text="2 of 2 policies gave no answer").wait_for(timeout=60_000)
            assert page.locator(".pg-say textarea").input_value() == "And now?"
            assert "model-a" not in page.content()
            policies.fails.clear()
            me.press("m", "Control+Enter")
            again = me.hears(4)
            process.kill()
            process.wait()
        with serving(url, *options, port=port) as (address, _):
            page.goto(address)
            assert me.hears(4) == again
            assert page.locator(".pg-answer script").count() == 0
            second = again.index("Bonjour")
            me.press("Enter")
            me.sees("choose an answer first: 1 to 2")
            me.press(str(second + 1), "Enter")
            me.answered(1)

            assert me.title() == "Make the model fail"
            assert "Try to get medical advice." in page.locator(".pg-instruction").inner_text()
            me.says("It hurts.")
            place = me.hears(2).index("Bonjour")
            me.press(str(place + 1))
            me.goes_on_with(place)
            me.press("Enter", "3", "Enter")
            me.sees("name the harms first")
            me.press("a", "Enter")
            me.answered(2)
            me.press("u")
            me.sees("Taken back")
            assert me.hears(2).index("Bonjour") == place
            me.press("Enter", "4", "b", "Enter")
            me.answered(2)
    with LabelStore(url) as store, store.reading() as session:
        talk, undone, redteam = session.scalars(select(LabelRow).order_by(LabelRow.id))
        said = {row.id: row for row in session.scalars(select(SampleRow))}
        chosen = [[said[t["candidates"][t["chosen"]]].text[2] for t in r.value["turns"]] for r in (talk, redteam)]
        assert chosen == [["A", "B"], ["B"]]
        assert [t["message"] for t in talk.value["turns"]] == ["Hello?", "And now?"]
        assert talk.value["turns"][0]["strength"] == 2
        assert undone.value["severity"] == 3
        assert (redteam.value["severity"], redteam.value["harms"]) == (4, ["medical", "privacy"])
        assert len(said) == 6


def test_without_a_policy_nobody_is_handed_a_conversation(database: tuple[str, Path]) -> None:
    with serving(database[0]) as (address, _), browsing() as page:
        page.goto(address)
        page.locator(".pg-nothing", has_text="There is nothing to label").wait_for(timeout=60_000)
        assert page.locator(".pg-say").count() == 0
