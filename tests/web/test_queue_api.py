import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from postgrad.feedback.conversation import Conversations
from postgrad.feedback.people import OPERATOR, People
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Sample
from postgrad.feedback.speakers import Said
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask
from postgrad.types import Conversation, Example, Message, SamplingParams
from postgrad.web.auth import Auth
from postgrad.web.queue_api import queue_router

SECRETS = ("candidate-7", "cd" * 32, "champion")


def sample(prompt_id: str, text: str, stage: str) -> Sample:
    return Sample(prompt_id, "r", stage, "cd" * 32, 3, SamplingParams(max_tokens=8), 7, text, (1,), "stop")


@pytest.fixture
def store(labels_url: str) -> Iterator[LabelStore]:
    with LabelStore(labels_url) as store:
        store.add_round("r", recipe="test")
        store.add_prompts([Example(f"p{i}", Conversation((Message("user", "Hi"),))) for i in range(3)])
        pairs = [
            store.add_samples([sample(f"p{i}", "X \U0001f600", "candidate-7"), sample(f"p{i}", "Y", "champion")])
            for i in range(3)
        ]
        comparisons = store.ask(pairs, purpose="train", round_id="r")
        LabelQueue(store).add([NewTask("compare", c) for c in comparisons], round_id="r")
        yield store


@pytest.fixture
def client(store: LabelStore) -> TestClient:
    auth = Auth(People(store))
    app = FastAPI()
    auth.install(app)
    app.include_router(queue_router(Conversations(LabelQueue(store), ()), auth.allowed("label")))
    return TestClient(app, headers=token(store, "ada"))


class Parrot:
    name, checkpoint, timeout_s = "champion", "cd" * 32, 5.0

    async def say(self, conversation: Conversation, *, seed: int) -> Said:
        return Said(f"You said {conversation.messages[-1].content}", (), "stop", SamplingParams(max_tokens=8))

    async def close(self) -> None: ...


def token(store: LabelStore, name: str) -> dict[str, str]:
    people = People(store)
    account = people.add(name, "correct horse battery", "labeler", by=OPERATOR)
    return {"authorization": f"Bearer {people.make_token('test', 'labeler', 1, by=account)}"}


def answer(better: int = 0) -> dict[str, Any]:
    return {"value": {"tiers": [[better], [1 - better]], "strength": 1}, "client_key": uuid.uuid4().hex}


def claimed(client: TestClient) -> dict[str, Any]:
    task: dict[str, Any] = client.post("/api/claim").json()["task"]
    return task


def test_a_browser_learns_nothing_about_who_wrote_what(client: TestClient) -> None:
    body = client.post("/api/claim").text
    assert "X" in body
    assert not [secret for secret in SECRETS if secret in body]
    assert set(claimed(client)) == {
        "assignment_id", "kind", "prompt", "answers", "details", "lease_until", "draft", "draft_version",
        "turns",
    }  # fmt: skip


def test_places_on_the_screen_are_stored_as_answers(client: TestClient, store: LabelStore) -> None:
    for _ in range(3):
        task = claimed(client)
        place = task["answers"].index("Y")
        assert client.post(f"/api/assignments/{task['assignment_id']}/submit", json=answer(place)).status_code == 200
    assert [j.preference.tiers for j in store.preferences(purpose="train")] == [((1,), (0,))] * 3


def test_sending_twice_is_acknowledged_twice_and_stored_once(client: TestClient, store: LabelStore) -> None:
    url, body = f"/api/assignments/{claimed(client)['assignment_id']}/submit", answer()
    assert client.post(url, json=body).json() == client.post(url, json=body).json()
    assert store.counts()["preferences"] == 1


def test_another_answer_from_another_tab_is_409(client: TestClient) -> None:
    url = f"/api/assignments/{claimed(client)['assignment_id']}/submit"
    client.post(url, json=answer())
    late = client.post(url, json=answer(1))
    assert late.status_code == 409
    assert late.json()["error"]["code"] == "stale"


@pytest.mark.parametrize(
    "body",
    [
        {"value": {"tiers": [[0], [1]]}, "client_key": "short"},
        {"value": {"tiers": [[0], [1]]}},
        {"value": {"tiers": [[0], [1]]}, "client_key": "x" * 20, "rater_id": "bob"},
        {"value": {"tiers": [[0], [1]]}, "client_key": "x" * 20, "milliseconds": -1},
    ],
)
def test_a_malformed_submission_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post(f"/api/assignments/{claimed(client)['assignment_id']}/submit", json=body).status_code == 400


@pytest.mark.parametrize(
    "value",
    [
        {"tiers": [[0]]},
        {"tiers": [[0], [2]]},
        {"tiers": []},
        {"tiers": [[0], [1]], "strength": 9},
        {"tiers": [[0], [1]], "both_bad": True},
        {"text": "an edit"},
    ],
)
def test_a_value_that_does_not_fit_the_task_is_400(
    client: TestClient, value: dict[str, Any], store: LabelStore
) -> None:
    url = f"/api/assignments/{claimed(client)['assignment_id']}/submit"
    refused = client.post(url, json={"value": value, "client_key": "x" * 20})
    assert refused.status_code == 400, refused.text
    assert store.counts()["preferences"] == 0


def test_a_client_talks_chooses_and_finishes_without_learning_who_spoke(store: LabelStore) -> None:
    LabelQueue(store).add([NewTask("redteam", "p0", {"harms": ["insult"]}, priority=9)], round_id="r")
    auth = Auth(People(store))
    app = FastAPI()
    auth.install(app)
    app.include_router(queue_router(Conversations(LabelQueue(store), [Parrot()]), auth.allowed("label")))
    with TestClient(app, headers=token(store, "ada")) as client:
        task = claimed(client)
        url = f"/api/assignments/{task['assignment_id']}"
        heard = client.post(f"{url}/say", json={"message": "Hello?", "version": task["draft_version"]})
        task = heard.json()["task"]
        assert heard.json()["note"] == ""
        assert task["turns"] == [
            {"message": "Hello?", "answers": ["You said Hello?"] * 2, "chosen": None, "strength": None}
        ]
        assert not [secret for secret in SECRETS if secret in heard.text]
        stale = client.post(f"{url}/choose", json={"place": 1, "version": 0})
        assert (stale.status_code, stale.json()["error"]["code"]) == (409, "stale")
        chosen = client.post(f"{url}/choose", json={"place": 1, "strength": 2, "version": task["draft_version"]})
        assert (chosen.json()["task"]["turns"][0]["chosen"], chosen.status_code) == (1, 200)
        value = {"turns": 1, "severity": 1, "harms": ["insult"]}
        done = client.post(f"{url}/submit", json={"value": value, "client_key": "x" * 20})
        assert done.status_code == 200, done.text
        assert client.post(f"{url}/say", json={"message": "More?", "version": 2}).status_code == 409


def test_conversations_wait_where_there_is_nobody_to_talk_with(client: TestClient, store: LabelStore) -> None:
    LabelQueue(store).add([NewTask("converse", "p0", priority=9)], round_id="r")
    assert claimed(client)["kind"] == "compare"


def test_other_peoples_tasks_are_not_mine(client: TestClient, store: LabelStore) -> None:
    theirs = client.post("/api/claim", headers=token(store, "bob")).json()["task"]["assignment_id"]
    for method, path in (("post", "submit"), ("post", "heartbeat")):
        refused = client.request(method, f"/api/assignments/{theirs}/{path}", json=answer())
        assert refused.status_code == 400
        assert "of yours" in refused.json()["error"]["message"]


def test_nobody_claims_without_an_account_nor_with_one_that_may_not(client: TestClient, store: LabelStore) -> None:
    assert client.post("/api/claim", headers={"authorization": ""}).status_code == 401
    people = People(store)
    reader = people.add("eve", "correct horse battery", "reader", by=OPERATOR)
    header = {"authorization": f"Bearer {people.make_token('test', 'reader', 1, by=reader)}"}
    assert client.post("/api/claim", headers=header).status_code == 403


def test_skip_undo_draft_and_guideline(client: TestClient, store: LabelStore) -> None:
    first = claimed(client)["assignment_id"]
    assert client.put(f"/api/assignments/{first}/draft", json={"draft": {"a": 1}, "version": 0}).json() == {
        "version": 1
    }
    assert client.put(f"/api/assignments/{first}/draft", json={"draft": {}, "version": 0}).status_code == 409
    assert claimed(client)["draft"] == {"a": 1}
    assert client.post(f"/api/assignments/{first}/skip", json={"reason": "broken"}).status_code == 200
    second = claimed(client)["assignment_id"]
    client.post(f"/api/assignments/{second}/submit", json=answer())
    assert client.post("/api/undo").json()["task"]["assignment_id"] == second
    assert client.get("/api/guideline").json() == {"version": None, "text": ""}
