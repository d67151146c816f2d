"""A labeler's whole shift in a real browser, by keyboard alone, against the real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import Person, browsing, needs_browser, serving
from sqlalchemy import select

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import AssignmentRow, LabelRow
from postgrad.feedback.people import OPERATOR, People
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Sample
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask
from postgrad.types import Conversation, Example, Message, SamplingParams

PASSWORD = "correct horse battery"
NUM = 20
pytestmark = needs_browser


def sample(prompt_id: str, text: str) -> Sample:
    return Sample(prompt_id, "r", "secret-stage", "cd" * 32, 3, SamplingParams(max_tokens=8), 7, text, (1,), "stop")


def fill(store: LabelStore) -> None:
    """Two gold tasks, an edit, and as many comparisons as the shift needs, in this order."""
    queue = LabelQueue(store)
    store.add_round("r", recipe="test")
    names = ["gold0", "gold1", "edit", *(f"p{i}" for i in range(NUM + 3))]
    store.add_prompts(Example(name, Conversation((Message("user", f"Say **{name}**."),))) for name in names)
    sides = {n: store.add_samples([sample(n, f"good {n} <script>x</script>"), sample(n, f"bad {n}")]) for n in names}
    golden = store.ask([sides["gold0"], sides["gold1"]], purpose="gold", round_id="r")
    work = store.ask([sides[n] for n in names[3:]], purpose="train", round_id="r")
    queue.add([NewTask("compare", c, answer={"tiers": [[0], [1]]}) for c in golden], round_id="r")
    queue.add([NewTask("edit", sides["edit"][1], priority=9)], round_id="r")
    queue.add([NewTask("compare", c) for c in work], round_id="r")
    queue.add([NewTask("converse", "edit", priority=99)], round_id="r")  # no policy, so nobody is handed it


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """(address, database) of a workbench with one labeler, ada."""
    url = sqlite_url(tmp_path / "postgrad.db")
    with LabelStore(url) as store:
        fill(store)
        People(store).add("ada", PASSWORD, "labeler", by=OPERATOR)
    config = tmp_path / "queue.toml"
    config.write_text("exam_tasks = 2\ngold_frac = 0\nrepeat_frac = 0\n", encoding="utf-8")
    with serving(url, "--accounts", "--config", str(config)) as (address, _):
        yield address, url


class Shift(Person):
    """Ada at her keyboard."""

    def key_of_the_good_one(self) -> str:
        first = self.page.locator(".pg-answer").first.inner_text()
        return "2" if "good" in first else "6"


@pytest.fixture
def ada(server: tuple[str, str]) -> Iterator[Shift]:
    with browsing() as page:
        page.goto(server[0])
        page.locator("#pg-login").wait_for()
        page.keyboard.type("ada")
        page.keyboard.press("Tab")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.locator(".pg-answer").first.wait_for(timeout=60_000)
        yield Shift(page)


def test_a_whole_shift_by_keyboard_loses_nothing(ada: Shift, server: tuple[str, str]) -> None:
    for i in range(2):  # the examination
        ada.press(ada.key_of_the_good_one(), "Enter")
        ada.answered(i + 1)
    assert ada.title() == "Make this answer right"
    ada.page.locator("textarea").click()
    ada.press("Control+End")
    ada.page.keyboard.type(" but better \u4f60\u597d")
    ada.page.locator(".pg-diff ins").first.wait_for()
    ada.press("Control+Enter")
    ada.answered(3)
    for i in range(NUM - 2):
        ada.press(ada.key_of_the_good_one(), "Enter")
        ada.answered(4 + i)

    ada.press("u")  # and judge it the other way round
    ada.sees("Taken back")
    ada.press("4", "Enter")
    ada.answered(NUM + 1)

    ada.press("Enter")
    ada.sees("choose a grade first")

    ada.press("r")
    ada.page.keyboard.type("typed before the cut")
    ada.sees("Draft saved")
    ada.page.context.set_offline(True)
    ada.page.keyboard.type(", and while it was cut")
    ada.page.wait_for_timeout(2000)
    ada.page.context.set_offline(False)
    ada.page.wait_for_timeout(3000)
    ada.press("Escape", ada.key_of_the_good_one(), "Enter")
    ada.answered(NUM + 2)

    skipped = ada.page.locator(".pg-prompt").inner_text().split()[-1]
    ada.press("s")
    ada.page.keyboard.type("not my language")
    ada.press("Enter")
    ada.sees("Skipped")
    ada.page.locator(".pg-prompt").filter(has_not_text=skipped).wait_for()
    ada.press(ada.key_of_the_good_one(), "Enter")
    ada.answered(NUM + 3)

    with LabelStore(server[1]) as store, store.reading() as session:
        labels = list(session.scalars(select(LabelRow).order_by(LabelRow.id)))
        standing = [row for row in labels if row.undone_at is None]
        assert len(labels) == NUM + 4
        assert [row.kind for row in standing].count("compare") == NUM + 2
        (edit,) = [row for row in standing if row.kind == "edit"]
        assert edit.value == {"text": "bad edit but better \u4f60\u597d"}
        assert [row.value["tiers"] for row in standing if row.kind == "compare"].count([[0], [1]]) == NUM + 1
        assert [row.value["tiers"] for row in standing if row.kind == "compare"].count([[0, 1]]) == 1
        assert [row.rationale for row in standing if row.rationale] == ["typed before the cut, and while it was cut"]
        assert [
            row.reason for row in session.scalars(select(AssignmentRow).where(AssignmentRow.state == "skipped"))
        ] == ["not my language"]


def test_the_page_tells_nobody_who_wrote_what_and_runs_no_script(ada: Shift) -> None:
    html = ada.page.content()
    assert "secret-stage" not in html
    assert "cdcdcd" not in html
    assert ada.page.locator(".pg-answer script").count() == 0
    assert "<script>x</script>" in ada.page.locator(".pg-text", has_text="good").first.inner_text()


def test_two_tabs_hold_the_same_task_and_the_second_answer_is_refused(ada: Shift, server: tuple[str, str]) -> None:
    other = Shift(ada.page.context.new_page())
    other.page.goto(server[0])
    other.page.locator(".pg-answer").first.wait_for(timeout=60_000)
    ada.press(ada.key_of_the_good_one(), "Enter")
    ada.answered(1)
    other.press(other.key_of_the_good_one(), "Enter")
    other.sees("submitted already, perhaps in another tab")
    with LabelStore(server[1]) as store, store.reading() as session:
        assert len(list(session.scalars(select(LabelRow)))) == 1
