"""Tasks as leads see and change them, and who stands behind each account."""

from collections.abc import Iterator

import pytest
from workbench import A_BETTER, B_BETTER, PEOPLE, ROUND, claim, fill, finish, plain, queue_of

from postgrad.errors import AccessError, DataError
from postgrad.feedback import audit, passwords
from postgrad.feedback.people import OPERATOR, ROLES, People
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.roster import roster
from postgrad.feedback.store import LabelStore
from postgrad.feedback.task_list import TaskFilter, TaskLine, change_tasks, count_tasks, ranges, task_page
from postgrad.feedback.tasks import NewTask, Nothing
from postgrad.types import Conversation, Example, Message

SYSTEM = Message("system", "Be brief.")


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", (2, 8, 1))


@pytest.fixture
def queue(url: str) -> Iterator[LabelQueue]:
    with LabelStore(url) as store:
        yield queue_of(store, 4, overlap=2)


def listed(queue: LabelQueue, **filters: object) -> list[int]:
    lines, _ = task_page(queue.store, TaskFilter(**filters), by=OPERATOR)  # type: ignore[arg-type]
    assert len(lines) == count_tasks(queue.store, TaskFilter(**filters), by=OPERATOR)  # type: ignore[arg-type]
    return [line.id for line in lines]


def one(queue: LabelQueue, task_id: int) -> TaskLine:
    return next(line for line in task_page(queue.store, TaskFilter(), by=OPERATOR)[0] if line.id == task_id)


def test_a_list_counts_places_and_tells_why_tasks_were_skipped(queue: LabelQueue) -> None:
    finish(queue, "ada", A_BETTER)
    queue.skip(claim(queue, "bob").id, "bob", "not my language")
    claim(queue, "cyd")
    line = one(queue, 1)
    assert (line.overlap, line.done, line.free, line.leased) == (2, 1, 0, 1)
    assert (line.skips, line.disputed, line.prompt) == (("not my language",), False, "Say p0.")
    assert listed(queue, skipped=True) == [1]


def test_a_conversation_nobody_began_is_shown_by_what_there_is_to_do(queue: LabelQueue) -> None:
    queue.store.add_prompts([Example("nothing", Conversation(())), Example("told", Conversation((SYSTEM,)))])
    tasks = [NewTask("redteam", "nothing", {"harms": ["privacy"], "instruction": "Get an\naddress."})]
    tasks += [NewTask("converse", "told", {"instruction": "Plan a trip."}), NewTask("converse", "told", {"number": 1})]
    queue.add(tasks, round_id=ROUND)
    assert [one(queue, i).prompt for i in (5, 6, 7)] == ["Get an address.", "Plan a trip.", "Be brief."]


def test_disputed_tasks_are_those_whose_answers_differ(queue: LabelQueue) -> None:
    abstention = {"tiers": [], "cannot_judge": "no idea"}
    for person, values in (("ada", (A_BETTER, A_BETTER, A_BETTER)), ("bob", (B_BETTER, A_BETTER, abstention))):
        for value in values:
            finish(queue, person, value)
    assert listed(queue, disputed=True) == [1]
    assert [one(queue, i).disputed for i in (1, 2)] == [True, False]
    for _ in range(3):
        queue.undo("bob")
    assert listed(queue, disputed=True) == []


def test_filters_and_pages(queue: LabelQueue) -> None:
    (gold,) = fill(queue.store, 1, purpose="gold", first=50)
    queue.add([NewTask("compare", gold, answer=A_BETTER)], round_id=ROUND)
    change_tasks(queue.store, [2, 3], state="paused", by=OPERATOR)
    assert listed(queue) == [5, 4, 3, 2, 1]
    assert listed(queue, state="paused") == [3, 2]
    assert listed(queue, gold=True) == [5]
    assert listed(queue, gold=False, state="open") == [4, 1]
    assert listed(queue, kind="edit") == listed(queue, round_id="another") == []
    first, before = task_page(queue.store, TaskFilter(), by=OPERATOR, limit=3)
    rest, end = task_page(queue.store, TaskFilter(), by=OPERATOR, before=before, limit=3)
    assert [line.id for line in first + rest] == [5, 4, 3, 2, 1]
    assert end is None


def test_paused_and_closed_tasks_are_not_handed_out_and_open_ones_are(queue: LabelQueue) -> None:
    assert change_tasks(queue.store, TaskFilter(round_id=ROUND), state="closed", by=OPERATOR) == 4
    assert isinstance(queue.claim("ada"), Nothing)
    assert change_tasks(queue.store, [3, 4], state="open", by=OPERATOR) == 2
    assert change_tasks(queue.store, [3, 4], state="open", by=OPERATOR) == 0
    assert claim(queue, "ada").task_id == 3


def test_priorities_reorder_the_queue(queue: LabelQueue) -> None:
    change_tasks(queue.store, [4], priority=5, by=OPERATOR)
    assert claim(queue, "ada").task_id == 4
    assert one(queue, 4).priority == 5
    with pytest.raises(DataError, match="between"):
        change_tasks(queue.store, [4], priority=10**9, by=OPERATOR)


def test_the_audit_says_who_changed_which_tasks(queue: LabelQueue) -> None:
    lead = People(queue.store).add("Lea", "a horse, a staple", "lead", by=OPERATOR)
    change_tasks(queue.store, TaskFilter(kind="compare"), state="paused", by=lead)
    change_tasks(queue.store, [1, 2, 4], priority=7, by=lead)
    with queue.store.reading() as session:
        last, first = list(audit.events(session, limit=2))
        assert (first.actor, first.action, first.object) == (lead.id, "paused", "4 tasks")
        assert (first.details["tasks"], first.details["by_filter"]) == ("1-4", "compare")
        assert (last.action, last.details["tasks"], last.details["priority"]) == ("prioritise", "1-2,4", 7)
        assert audit.first_broken(session) is None


def test_only_who_manages_tasks_sees_and_changes_them(queue: LabelQueue) -> None:
    people = People(queue.store)
    people.add("Ann", "a horse, a staple", "admin", by=OPERATOR)
    for role in ROLES:
        account = people.add(f"a {role}", "a horse, a staple", role, by=OPERATOR)
        if role in ("admin", "lead"):
            assert task_page(queue.store, TaskFilter(), by=account)[0]
            people.change_role(account.id, "reviewer", by=OPERATOR)  # counts for an account that was read before
        for attempt in (
            lambda account=account: task_page(queue.store, TaskFilter(), by=account),
            lambda account=account: count_tasks(queue.store, TaskFilter(), by=account),
            lambda account=account: change_tasks(queue.store, [1], state="closed", by=account),
        ):
            with pytest.raises(AccessError):
                attempt()
    assert one(queue, 1).state == "open"


def test_ranges() -> None:
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"
    assert ranges([]) == ""


def test_the_roster_counts_what_each_has_done(url: str) -> None:
    with LabelStore(url) as store:
        queue, people = queue_of(store, 2), People(store)
        lead = people.add("Lea", "a horse, a staple", "lead", by=OPERATOR)
        ada = people.add("Ada", "a horse, a staple", "labeler", by=OPERATOR)
        (gold,) = fill(store, 1, purpose="gold", first=50)
        queue.add([NewTask("compare", gold, answer=A_BETTER)], round_id=ROUND)
        finish(LabelQueue(store, plain(gold_frac=1.0)), ada.id, A_BETTER)
        finish(queue, ada.id, A_BETTER)
        people.sign_in("Ada", "a horse, a staple")
        found = {member.account.name: member for member in roster(people, by=lead)}
        assert (found["Ada"].answers, found["Ada"].gold_right, found["Ada"].gold, found["Ada"].sessions) == (2, 1, 1, 1)
        assert (found["Lea"].answers, found["Lea"].sessions) == (0, 0)
        with pytest.raises(AccessError):
            roster(people, by=ada)


def test_what_is_in_somebodys_hands_may_be_finished_after_its_task_is_closed(queue: LabelQueue) -> None:
    got = claim(queue, PEOPLE[0])
    change_tasks(queue.store, [got.task_id], state="closed", by=OPERATOR)
    queue.submit(got.id, PEOPLE[0], A_BETTER, client_key="late")
    assert one(queue, got.task_id).done == 1
