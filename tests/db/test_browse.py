"""Who may see which labels, what the filters hold back, and what one label tells to whom."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update
from workbench import A_BETTER, B_BETTER, ROUND, TIE, answer, claim, fill, finish, plain, shown, talked

from postgrad.db.tables import LabelRow
from postgrad.errors import AccessError, DataError
from postgrad.feedback import newest as newest_module
from postgrad.feedback import passwords
from postgrad.feedback.browse import LabelFilter, browse, choices
from postgrad.feedback.opened import open_label
from postgrad.feedback.people import OPERATOR, Account, People, Role
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask
from postgrad.types import Conversation, Example, Message


class Desk:
    """A queue with people who have accounts."""

    def __init__(self, store: LabelStore, queue: LabelQueue) -> None:
        self.store, self.queue, self.people = store, queue, People(store)
        self.who = {role: self.account(role.title(), role) for role in ("lead", "reviewer", "reader")}
        self.ada, self.bob = self.account("Ada", "labeler"), self.account("Bob", "labeler")

    def account(self, name: str, role: Role) -> Account:
        return self.people.add(name, "a horse, a staple", role, by=OPERATOR)

    def found(self, by: Account, **filters: object) -> list[int]:
        return [line.id for line in browse(self.store, LabelFilter(**filters), by=by)[0]]  # type: ignore[arg-type]


@pytest.fixture
def desk(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Labels 1 and 2 are Ada's on p0 and p1, 3 is Bob's on p0, 4 Ada's edit of p2."""
    monkeypatch.setattr(passwords, "COST", (2, 8, 1))
    with LabelStore(url) as store:
        queue = LabelQueue(store, plain())
        comparisons = fill(store, 2)
        store.add_prompts([Example("p2", Conversation((Message("user", "Was is\u00df \u00dcbung? 100%"),)))])
        (sample,) = store.add_samples([answer("p2", "the cat sat")])
        desk = Desk(store, queue)
        queue.add_guideline("Be fair.", author_id=desk.who["lead"].id)
        queue.add([NewTask("compare", c, overlap=2) for c in comparisons], round_id=ROUND)
        finish(queue, desk.ada.id, A_BETTER)
        got = claim(queue, desk.ada.id)
        queue.submit(got.id, desk.ada.id, shown(got, TIE), client_key="tie", rationale="Both say the same_thing.")
        finish(queue, desk.bob.id, B_BETTER)
        queue.add([NewTask("edit", sample, priority=9)], round_id=ROUND)
        finish(queue, desk.ada.id, {"text": "the dog sat"})
        yield desk


def test_labelers_see_their_own_labels_and_nobody_elses(desk: Desk) -> None:
    assert desk.found(desk.ada) == [4, 2, 1]
    assert desk.found(desk.bob) == [3]
    assert desk.found(desk.bob, rater=desk.ada.id) == []
    with pytest.raises(DataError, match="no label 1 that you may see"):
        open_label(desk.store, 1, by=desk.bob)
    assert all(desk.found(account) == [4, 3, 2, 1] for account in desk.who.values())


def test_who_is_paused_sees_nothing(desk: Desk) -> None:
    paused = desk.people.pause(desk.ada.id, "too fast", by=OPERATOR)
    with pytest.raises(AccessError, match="paused: too fast"):
        browse(desk.store, LabelFilter(), by=paused)


def test_names_of_raters_are_for_who_may_see_their_quality(desk: Desk) -> None:
    def raters(by: Account) -> set[str]:
        return {line.rater for line in browse(desk.store, LabelFilter(), by=by)[0]}

    assert raters(desk.who["lead"]) == raters(desk.who["reviewer"]) == {"Ada", "Bob"}
    assert raters(desk.who["reader"]) == {desk.ada.id, desk.bob.id}
    assert raters(desk.ada) == {"Ada"}
    assert desk.found(desk.who["lead"], rater="Bob") == [3]
    assert desk.found(desk.who["reader"], rater="Bob") == []
    assert choices(desk.store, by=desk.who["reader"]).raters == ()


def test_only_readers_learn_which_model_wrote_what(desk: Desk) -> None:
    for label_id in (1, 4):
        assert [a.source for a in open_label(desk.store, label_id, by=desk.ada).answers].count(None) > 0
        sources = [a.source for a in open_label(desk.store, label_id, by=desk.who["reader"]).answers]
        assert {source.checkpoint for source in sources if source is not None} == {"cd" * 32}
        assert None not in sources


def test_what_others_said_of_the_task_in_hand_waits_until_it_is_answered(desk: Desk) -> None:
    reviewer = desk.who["reviewer"]
    desk.queue.add([NewTask("adjudicate", comparison_of(desk), priority=99)], round_id=ROUND)
    held = desk.queue.claim(reviewer.id, kinds=("adjudicate",))
    assert desk.found(reviewer) == [4, 2]
    with pytest.raises(DataError, match="may see now"):
        open_label(desk.store, 3, by=reviewer)
    assert desk.found(desk.who["lead"]) == [4, 3, 2, 1]
    desk.queue.skip(held.id, reviewer.id, "no")  # type: ignore[union-attr]
    assert desk.found(reviewer) == [4, 3, 2, 1]


def comparison_of(desk: Desk) -> str:
    return next(j.preference.comparison_id for j in desk.store.preferences(purpose="train") if j.prompt_id == "p0")


def test_gold_and_repeats_are_marked_for_readers_and_hidden_from_labelers(desk: Desk) -> None:
    (gold,) = fill(desk.store, 1, purpose="gold", first=50)
    desk.queue.add([NewTask("compare", gold, answer=A_BETTER)], round_id=ROUND)
    asking = LabelQueue(desk.store, plain(gold_frac=1.0))
    finish(asking, desk.ada.id, B_BETTER)
    lead, reader = desk.who["lead"], desk.who["reader"]
    assert desk.found(lead, only="gold") == [5]
    assert desk.found(lead, only="work") == [4, 3, 2, 1]
    assert [line.mark for line in browse(desk.store, LabelFilter(), by=reader)[0]] == ["gold", "", "", "", ""]
    assert {line.mark for line in browse(desk.store, LabelFilter(), by=desk.ada)[0]} == {""}
    with pytest.raises(AccessError):
        desk.found(desk.ada, only="gold")
    opened = open_label(desk.store, 5, by=lead)
    assert (opened.correct, opened.known[2:]) == (False, "better")
    for account in (reader, desk.ada):
        hidden = open_label(desk.store, 5, by=account)
        assert (hidden.correct, hidden.known) == (None, "")


def test_text_is_found_where_a_person_reads_it_and_only_there(desk: Desk) -> None:
    wanted = {
        "x p0": [3, 1], "SAY P1": [2], "the dog": [4], "the cat": [4], "\u00df \u00dcbung": [4], "100%": [4], "0%1": [],
        "same_thing": [2], "samething": [], "sameXthing": [], "content": [], "strength": [], '"': [], "user": [],
    }  # fmt: skip
    assert {text: desk.found(desk.who["lead"], text=text) for text in wanted} == wanted


def test_the_answers_of_conversations_are_searched_whether_or_not_they_were_chosen(desk: Desk) -> None:
    lead, store = desk.who["lead"], desk.store
    names = store.add_samples(answer("p1", text) for text in ("Guten Tag, 100% !", "Ahoy\u00dc", "never offered"))
    desk.queue.add([NewTask("converse", "p1", priority=9), NewTask("write", "p1", priority=8)], round_id=ROUND)
    got = claim(desk.queue, desk.ada.id)
    turns = [{"message": "Hello there", "candidates": names[:2], "order": [1, 0], "chosen": 0}]
    desk.queue.submit(got.id, desk.ada.id, talked(store, got, turns), client_key="talk")
    finish(desk.queue, desk.ada.id, {"text": "Mine."})
    wanted = {"guten tag": [5], "100% !": [5], "Ahoy\u00dc": [5], "hello": [5], "never": [], names[0]: []}
    assert {text: desk.found(lead, text=text) for text in wanted} == wanted
    assert desk.found(desk.bob, text="guten tag") == []


def test_filters(desk: Desk) -> None:
    lead = desk.who["lead"]
    assert desk.found(lead, kind="edit") == [4]
    assert desk.found(lead, round_id=ROUND) == [4, 3, 2, 1]
    assert desk.found(lead, round_id="another") == []
    assert desk.found(lead, guideline=1) == [4, 3, 2, 1]
    assert desk.found(lead, guideline=2) == []
    assert desk.found(lead, task_id=1) == [3, 1]
    desk.queue.undo(desk.bob.id)
    assert desk.found(lead, standing="undone") == [3]
    assert desk.found(lead, standing="standing") == [4, 2, 1]
    old = datetime(2020, 5, 1, tzinfo=UTC)
    with desk.store.writing() as session:
        session.execute(update(LabelRow).where(LabelRow.id == 2).values(created_at=old))
    assert desk.found(lead, until=old + timedelta(days=1)) == [2]
    assert desk.found(lead, since=old + timedelta(days=1)) == [4, 3, 1]
    with pytest.raises(DataError, match="at most 200"):
        desk.found(lead, text="x" * 201)


def test_pages_hold_every_label_once(desk: Desk) -> None:
    lead, seen, before = desk.who["lead"], [], None
    for _ in range(3):
        lines, before = browse(desk.store, LabelFilter(), by=lead, before=before, limit=2)
        seen.append([line.id for line in lines])
        if before is None:
            break
    assert seen == [[4, 3], [2, 1]]


def test_a_search_that_takes_too_long_stops_and_goes_on_where_it_was(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newest_module, "BUDGET_S", -1.0)
    monkeypatch.setattr(newest_module, "_NARROWEST", 1)
    monkeypatch.setattr(newest_module, "_WIDEST", 1)
    seen, before = [], None
    for _ in range(9):
        lines, before = browse(desk.store, LabelFilter(text="x p0"), by=desk.who["lead"], before=before)
        seen.append([line.id for line in lines])
        if before is None:
            break
    assert seen == [[], [3], [], [1]]


def test_an_opened_label_tells_its_story(desk: Desk) -> None:
    desk.queue.undo(desk.ada.id)
    finish(desk.queue, desk.ada.id, {"text": "the dog sat down"}, key="again")
    opened = open_label(desk.store, 5, by=desk.who["lead"])
    assert [(h.who, h.what) for h in opened.history] == [
        ("Ada", "was given the task"),
        ("Ada", "answered: label 4"),
        ("Ada", "label 4 taken back"),
        ("Ada", "answered: label 5"),
    ]
    assert (opened.guideline, opened.line.said, opened.answers[0].text) == (
        "Be fair.", "the dog sat down", "the cat sat",
    )  # fmt: skip
    first = open_label(desk.store, 1, by=desk.who["lead"])
    chosen = {answer.text: answer.verdict for answer in first.answers}
    assert chosen == {"x p0": "chosen", "y p0": ""}
    assert first.line.said == f"{next(a.name for a in first.answers if a.verdict)} better"


def test_an_erased_label_says_so(desk: Desk) -> None:
    desk.people.erase(desk.ada.id, keep_labels=False, by=OPERATOR)
    opened = open_label(desk.store, 4, by=desk.who["lead"])
    assert (opened.line.said, opened.line.undone, opened.value) == ("erased", True, {})
    assert desk.found(desk.who["lead"], text="dog") == []
