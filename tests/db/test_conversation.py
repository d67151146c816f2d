import asyncio
import json
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy import select
from workbench import PEOPLE, ROUND, assert_places_add_up, everything, plain

from postgrad.db.tables import LabelRow, SampleRow
from postgrad.errors import DataError, EngineError, StaleError
from postgrad.feedback.conversation import Conversations, Heard
from postgrad.feedback.exports import export_labels
from postgrad.feedback.people import OPERATOR, People
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.speakers import Said
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import Assigned, NewTask, Nothing
from postgrad.feedback.values import Kind
from postgrad.types import Conversation, Example, Message, SamplingParams
from postgrad.web.queue_api import offered

HARMS = {"harms": ["medical", "privacy"], "instruction": "Try to get medical advice."}
Play = Callable[[str, int], str]
"""From the last message and the number of messages, what is answered; a sentence, or an error that is raised."""


class Scripted:
    """A policy that answers as it is told, with its name so that a test knows who spoke."""

    timeout_s = 0.5

    def __init__(self, name: str, play: Play | None = None) -> None:
        self.name, self.checkpoint = name, f"{name}-checkpoint"
        self.play = play or (lambda message, num: f"{name} answers {message!r}, the last of {num}.")
        self.heard: list[Conversation] = []
        self.gate: asyncio.Event | None = None

    async def say(self, conversation: Conversation, *, seed: int) -> Said:
        self.heard.append(conversation)
        said = self.play(conversation.messages[-1].content, len(conversation.messages))
        if said == "slow":
            await asyncio.sleep(60)
        if self.gate is not None:
            await self.gate.wait()
        return Said(said, (1, 2), "stop", SamplingParams(max_tokens=8, temperature=0.5), 3)

    async def close(self) -> None:
        self.is_closed = True


def refuses(message: str, num: int) -> str:
    raise EngineError("HTTP 500 from the secret host")


def is_too_long(message: str, num: int) -> str:
    raise DataError("the conversation fills the model's context of 64 tokens")


def open_talks(
    store: LabelStore, speakers: Sequence[Scripted], *, kind: Kind = "converse", num: int = 1
) -> Conversations:
    queue = LabelQueue(store, plain())
    store.add_round(ROUND, recipe="test")
    store.add_raters("human", {person: {} for person in PEOPLE})
    store.add_prompts([Example("system", Conversation((Message("system", "Be brief."),)))])
    details = HARMS if kind == "redteam" else {}
    queue.add([NewTask(kind, "system", {**details, "number": i}) for i in range(num)], round_id=ROUND)
    return Conversations(queue, speakers)


def two() -> list[Scripted]:
    return [Scripted("policy-a"), Scripted("policy-b")]


def hold(talks: Conversations, person: str = "ada") -> Assigned:
    got = talks.queue.claim(person)
    assert isinstance(got, Assigned), got
    return got


def say(talks: Conversations, message: str, person: str = "ada") -> Heard:
    got = hold(talks, person)
    return asyncio.run(talks.say(got.id, person, message, version=got.draft_version))


def choose(talks: Conversations, place: int, person: str = "ada", strength: int | None = None) -> Assigned:
    got = hold(talks, person)
    return talks.choose(got.id, person, place, version=got.draft_version, strength=strength)


def of(task: Assigned, name: str) -> int:
    """The place on the screen of what a policy said last."""
    (place,) = [i for i, answer in enumerate(task.turns[-1].answers) if answer.startswith(name)]
    return place


def labels(store: LabelStore) -> list[LabelRow]:
    with store.reading() as session:
        return list(session.scalars(select(LabelRow).order_by(LabelRow.id)))


def samples(store: LabelStore) -> dict[str, SampleRow]:
    with store.reading() as session:
        return {row.id: row for row in session.scalars(select(SampleRow))}


def test_what_is_chosen_goes_on_and_the_label_names_the_stored_candidates(url: str) -> None:
    with LabelStore(url) as store:
        speakers = two()
        talks = open_talks(store, speakers)
        heard = say(talks, "Hello?")
        assert heard.note == ""
        choose(talks, of(heard.task, "policy-b"), strength=2)
        heard = say(talks, "And now?")
        last = choose(talks, of(heard.task, "policy-a"))
        with pytest.raises(StaleError, match="has 2 turns, not 1"):
            talks.queue.submit(last.id, "ada", {"turns": 1}, client_key="k" * 8)
        receipt = talks.queue.submit(last.id, "ada", {"turns": 2}, client_key="k" * 8)
        assert talks.queue.submit(last.id, "ada", {"turns": 2}, client_key="k" * 8) == receipt
        (label,) = labels(store)
        first, second = label.value["turns"]
        by = {name: row.checkpoint for name, row in samples(store).items()}
        assert [by[turn["candidates"][turn["chosen"]]] for turn in (first, second)] == [
            "policy-b-checkpoint", "policy-a-checkpoint",
        ]  # fmt: skip
        assert (first["message"], first["strength"], second["strength"]) == ("Hello?", 2, None)
        assert [m.content for m in speakers[0].heard[1].messages] == [
            "Be brief.", "Hello?", "policy-b answers 'Hello?', the last of 2.", "And now?",
        ]  # fmt: skip
        assert len(by) == 4
        row = next(iter(samples(store).values()))
        assert (row.stage, row.policy_version, row.prompt_id, row.round_id) == ("live", 3, "system", ROUND)
        assert row.params["temperature"] == 0.5
        assert_places_add_up(store)


def test_the_order_on_the_screen_is_another_one_from_turn_to_turn_and_is_stored(url: str) -> None:
    with LabelStore(url) as store:
        talks = open_talks(store, two())
        places = []
        for i in range(16):
            task = say(talks, f"{i}?").task
            places.append(of(task, "policy-a"))
            choose(talks, 0)
        assert {0, 1} == set(places)
        talks.queue.submit(hold(talks).id, "ada", {"turns": 16}, client_key="k" * 8)
        by = samples(store)
        for place, turn in zip(places, labels(store)[0].value["turns"], strict=True):
            assert by[turn["candidates"][turn["order"][place]]].checkpoint == "policy-a-checkpoint"
            assert turn["chosen"] == turn["order"][0]


def test_nothing_that_a_client_gets_names_a_policy_or_a_sample(url: str) -> None:
    with LabelStore(url) as store:
        talks = open_talks(store, [Scripted("policy-a", lambda m, n: "one"), Scripted("policy-b", lambda m, n: "two")])
        say(talks, "Hello?")
        sent = json.dumps(offered(choose(talks, 1)))
        assert {"one", "two"} == set(json.loads(sent)["task"]["turns"][0]["answers"])
        assert not [secret for secret in ("policy-", "checkpoint", *samples(store)) if secret in sent]


def test_a_client_cannot_put_words_into_the_conversation(url: str) -> None:
    with LabelStore(url) as store:
        talks = open_talks(store, two(), num=2)
        say(talks, "Hello?")
        got = choose(talks, 0)
        forged = [{"message": "x", "candidates": list(samples(store)), "order": [0, 1], "chosen": 1}]
        with pytest.raises(DataError, match="'turns' is the number of turns"):
            talks.queue.submit(got.id, "ada", {"turns": forged}, client_key="k" * 8)
        talks.queue.save_draft(got.id, "ada", {"turns": forged, "value": {}}, version=got.draft_version)
        assert hold(talks).turns == got.turns
        talks.queue.submit(got.id, "ada", {"turns": 1}, client_key="k" * 8)
        assert labels(store)[0].value["turns"][0]["message"] == "Hello?"
        theirs = hold(talks, "bob")
        with pytest.raises(DataError, match="of yours"):
            asyncio.run(talks.say(theirs.id, "ada", "Hello?", version=0))
        with pytest.raises(DataError, match="of yours"):
            talks.choose(theirs.id, "ada", 0, version=0)


def test_another_process_finds_the_same_conversation_with_its_answers_in_the_same_order(url: str) -> None:
    with LabelStore(url) as store:
        talks = open_talks(store, two())
        say(talks, "Hello?")
        choose(talks, 1)
        before = say(talks, "And now?").task
    with LabelStore(url) as store:
        again = hold(Conversations(LabelQueue(store, plain()), two()))
        assert again.turns == before.turns
        assert (again.id, again.draft_version) == (before.id, before.draft_version)


def test_a_conversation_that_was_killed_while_it_was_answered_can_be_said_again(url: str) -> None:
    with LabelStore(url) as store:
        speakers = [Scripted("policy-a"), Scripted("policy-b", lambda m, n: "slow")]
        speakers[1].timeout_s = 60.0
        talks = open_talks(store, speakers)
        got = hold(talks)

        async def killed() -> None:
            task = asyncio.create_task(talks.say(got.id, "ada", "Hello?", version=0))
            while not samples(store):
                await asyncio.sleep(0.01)
            with pytest.raises(StaleError, match="still on their way"):
                await talks.say(got.id, "ada", "Hello?", version=1)
            await talks.close()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(killed())
        (turn,) = hold(talks).turns
        assert (turn.message, turn.answers) == ("Hello?", ())
        assert all(speaker.is_closed for speaker in speakers)
        (orphan,) = samples(store)
        again = Conversations(talks.queue, two())
        assert len(say(again, "Hello?").task.turns[0].answers) == 2
        assert orphan not in samples(store)


def test_an_answer_that_comes_late_finds_nothing_to_attach_to(url: str) -> None:
    with LabelStore(url) as store:
        speakers = two()
        here = open_talks(store, speakers)
        there = Conversations(here.queue, two())
        got = hold(here)

        async def both() -> None:
            for speaker in speakers:
                speaker.gate, speaker.timeout_s = asyncio.Event(), 60.0
            task = asyncio.create_task(here.say(got.id, "ada", "Hello?", version=0))
            while not all(speaker.heard for speaker in speakers):
                await asyncio.sleep(0.01)
            heard = await there.say(got.id, "ada", "Hello?", version=1)
            for speaker in speakers:
                assert speaker.gate is not None
                speaker.gate.set()
            late = await task
            assert late.note.startswith("2 of 2 policies gave no answer")
            assert late.task.turns == heard.task.turns

        asyncio.run(both())
        assert len(hold(here).turns[0].answers) == len(samples(store)) == 2


def test_policies_that_fail_leave_the_others_and_say_nothing_of_themselves(url: str) -> None:
    with LabelStore(url) as store:
        talks = open_talks(store, [*two(), Scripted("policy-c", refuses)])
        heard = say(talks, "Hello?")
        assert heard.note == "1 of 3 policies gave no answer: choose among the others."
        assert len(heard.task.turns[0].answers) == 2


@pytest.mark.parametrize(
    ("play", "why"),
    [
        (refuses, ""),
        (lambda m, n: "slow", " (no answer within 0.5 s"),
        (is_too_long, " (the conversation fills the model's"),
    ],
)
def test_too_few_answers_are_one_sentence_and_the_message_stays(url: str, play: Play, why: str) -> None:
    with LabelStore(url) as store:
        speakers = two()
        talks = open_talks(store, speakers)
        say(talks, "Hello?")
        choose(talks, 0)
        kept, speakers[1].play = speakers[1].play, play
        heard = say(talks, "And now?")
        assert heard.note.startswith(f"1 of 2 policies gave no answer{why}")
        assert heard.note.endswith("say it again, or something else.")
        assert "secret" not in heard.note
        assert (heard.task.turns[-1].message, heard.task.turns[-1].answers) == ("And now?", ())
        with pytest.raises(DataError, match="no answer 1 to choose"):
            choose(talks, 0)
        speakers[1].play = kept
        heard = say(talks, "And then?")
        assert [turn.message for turn in heard.task.turns] == ["Hello?", "And then?"]
        assert (heard.note, len(samples(store))) == ("", 4)


def test_a_message_that_nobody_answered_is_no_turn_of_the_label(url: str) -> None:
    with LabelStore(url) as store:
        speakers = two()
        talks = open_talks(store, speakers)
        say(talks, "Hello?")
        choose(talks, 0)
        speakers[1].play = refuses
        say(talks, "And now?")
        talks.queue.submit(hold(talks).id, "ada", {"turns": 1}, client_key="k" * 8)
        assert [turn["message"] for turn in labels(store)[0].value["turns"]] == ["Hello?"]
        assert len(samples(store)) == 2


def test_what_cannot_be_said_or_chosen_changes_nothing(url: str) -> None:
    with LabelStore(url) as store:
        talks = open_talks(store, two())
        with pytest.raises(DataError, match="1 to 400000 characters"):
            say(talks, " \n")
        with pytest.raises(DataError, match="'turns' is the number"):
            talks.queue.submit(hold(talks).id, "ada", {}, client_key="k" * 8)
        with pytest.raises(DataError, match="at least 1"):
            talks.queue.submit(hold(talks).id, "ada", {"turns": 0}, client_key="k" * 8)
        say(talks, "Hello?")
        with pytest.raises(DataError, match="choose one of the last answers"):
            say(talks, "Hello?")
        with pytest.raises(DataError, match="choose one of the last answers"):
            talks.queue.submit(hold(talks).id, "ada", {"turns": 0}, client_key="k" * 8)
        with pytest.raises(DataError, match="no answer 3"):
            choose(talks, 2)
        with pytest.raises(DataError, match="strength of 4"):
            choose(talks, 0, strength=4)
        with pytest.raises(DataError, match="no policy to talk with"):
            say(Conversations(talks.queue, ()), "Hello?")
        assert [turn.message for turn in hold(talks).turns] == ["Hello?"]


def test_one_policy_gives_two_candidates(url: str) -> None:
    with LabelStore(url) as store:
        answers = iter(("one", "two"))
        talks = open_talks(store, [Scripted("policy-a", lambda m, n: next(answers))])
        assert sorted(say(talks, "Hello?").task.turns[0].answers) == ["one", "two"]


def test_of_two_tabs_one_goes_on_and_there_is_one_label(url: str) -> None:
    with LabelStore(url) as store:
        talks = open_talks(store, two())
        here = there = say(talks, "Hello?").task
        here = talks.choose(here.id, "ada", 0, version=here.draft_version)
        with pytest.raises(StaleError, match="another tab"):
            talks.choose(there.id, "ada", 1, version=there.draft_version)
        with pytest.raises(StaleError, match="another tab"):
            asyncio.run(talks.say(there.id, "ada", "Hello?", version=there.draft_version))
        assert hold(talks).turns == here.turns
        talks.queue.submit(here.id, "ada", {"turns": 1}, client_key="k" * 8)
        with pytest.raises(StaleError, match="submitted already"):
            talks.queue.submit(there.id, "ada", {"turns": 1}, client_key="l" * 8)
        with pytest.raises(StaleError, match="submitted"):
            talks.choose(there.id, "ada", 1, version=here.draft_version)
        assert len(labels(store)) == 1


def test_undo_brings_a_red_team_conversation_back_whole(url: str) -> None:
    with LabelStore(url) as store:
        talks = open_talks(store, two(), kind="redteam")
        say(talks, "What is wrong with me?")
        before = choose(talks, 1, strength=3)
        with pytest.raises(DataError, match="needs the harms"):
            talks.queue.submit(before.id, "ada", {"turns": 1, "severity": 2}, client_key="k" * 8)
        with pytest.raises(DataError, match="'insult' is not one of medical, privacy"):
            talks.queue.submit(before.id, "ada", {"turns": 1, "severity": 2, "harms": ["insult"]}, client_key="k" * 8)
        ending = {"turns": 1, "severity": 2, "harms": ["medical"]}
        talks.queue.submit(before.id, "ada", ending, client_key="k" * 8, rationale="it told me")
        back = talks.queue.undo("ada")
        assert back is not None
        assert back.turns == before.turns
        assert back.draft == {"value": {"severity": 2, "harms": ["medical"]}, "rationale": "it told me"}
        say(talks, "Are you sure?")
        choose(talks, 0)
        talks.queue.submit(back.id, "ada", {**ending, "turns": 2, "severity": 4}, client_key="l" * 8)
        undone, label = labels(store)
        assert undone.undone_at is not None
        assert label.value["turns"][0] == undone.value["turns"][0]
        assert (label.value["severity"], len(label.value["turns"])) == (4, 2)
        assert_places_add_up(store)


def test_each_choice_is_a_preference_given_all_that_was_said_before(url: str) -> None:
    with LabelStore(url) as store:
        talks = open_talks(store, [*two(), Scripted("policy-c")])
        choose(talks, of(say(talks, "Hello?").task, "policy-b"), strength=1)
        choose(talks, of(say(talks, "And now?").task, "policy-a"))
        talks.queue.submit(hold(talks).id, "ada", {"turns": 2}, client_key="k" * 8)
        assert list(store.preferences(purpose="train")) == []
        first, second = store.preferences(purpose="train", round_id=ROUND, kinds=("converse",))
        for judged, best in ((first, "policy-b"), (second, "policy-a")):
            (top,), rest = judged.preference.tiers
            assert judged.comparison.answers[top].startswith(best)
            assert len(rest) == 2
        assert (first.preference.strength, second.preference.strength) == (1, None)
        said = [(m.role, m.content.split(" answers")[0]) for m in second.comparison.prompt.messages]
        assert said == [("system", "Be brief."), ("user", "Hello?"), ("assistant", "policy-b"), ("user", "And now?")]
        assert second.comparison.sources[second.preference.tiers[0][0]] in samples(store)
        assert list(store.preferences(purpose="train", rater_id="bob", kinds=("converse",))) == []
        assert list(store.preferences(purpose="train", round_id="other", kinds=("converse",))) == []
        talks.queue.undo("ada")
        assert list(store.preferences(purpose="train", kinds=("converse",))) == []


def test_a_prompts_own_question_is_only_suggested(url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with LabelStore(url) as store:
        speakers = two()
        talks = open_talks(store, speakers, num=0)
        prompt = Conversation((Message("system", "Be brief."), Message("user", "Suggested?")))
        store.add_prompts([Example("asking", prompt)])
        talks.queue.add([NewTask("converse", "asking")], round_id=ROUND)
        choose(talks, 0, strength=1) if say(talks, "My own.").task else None
        talks.queue.submit(hold(talks).id, "ada", {"turns": 1}, client_key="k" * 8)
        told = [m.content for m in speakers[0].heard[0].messages]
        assert told == ["Be brief.", "My own."]
        (judged,) = store.preferences(purpose="train", kinds=("converse",))
        assert [m.content for m in judged.comparison.prompt.messages] == told
        path = tmp_path_factory.mktemp("out") / "out.jsonl"
        export_labels(store, path, "trl-preference")
        assert [m["content"] for m in json.loads(path.read_text())["prompt"]] == told


@pytest.mark.parametrize("finished", [True, False])
def test_an_erased_persons_conversation_leaves_nothing_of_what_was_said(url: str, finished: bool) -> None:
    with LabelStore(url) as store:
        people = People(store)
        ada = people.add("Ada", "a horse, a staple", "labeler", by=OPERATOR)
        talks = open_talks(store, two(), kind="redteam", num=2)
        say(talks, "I am xyzzy.", ada.id)
        got = choose(talks, 0, ada.id)
        if finished:
            ending = {"turns": 1, "severity": 1, "harms": ["privacy"]}
            talks.queue.submit(got.id, ada.id, ending, client_key="k" * 8)
            talks.queue.undo(ada.id)
            talks.queue.submit(got.id, ada.id, ending, client_key="l" * 8)
        else:
            say(talks, "Still xyzzy.", ada.id)
            talks.queue.skip(got.id, ada.id, "enough")
        assert "xyzzy" in everything(url)
        people.erase(ada.id, keep_labels=True, by=OPERATOR)
        assert "xyzzy" not in everything(url)
        assert samples(store) == {}
        assert_places_add_up(store)


def test_an_answer_that_comes_after_its_person_was_erased_is_not_kept(url: str) -> None:
    with LabelStore(url) as store:
        people = People(store)
        ada = people.add("Ada", "a horse, a staple", "labeler", by=OPERATOR)
        talks = open_talks(store, [Scripted("policy-a"), Scripted("policy-b")])
        for speaker in talks._speakers:
            speaker.play = lambda m, n: (people.erase(ada.id, keep_labels=True, by=OPERATOR) and "late") or "late"
        got = hold(talks, ada.id)
        heard = asyncio.run(talks.say(got.id, ada.id, "xyzzy", version=0))
        assert heard.task.turns == ()
        assert samples(store) == {}
        assert "xyzzy" not in everything(url)


def test_who_talks_holds_nobody_elses_work_up(url: str) -> None:
    with LabelStore(url) as store:
        speakers = two()
        talks = open_talks(store, speakers, num=2)
        got = hold(talks)

        async def both() -> None:
            speakers[0].gate, speakers[0].timeout_s = asyncio.Event(), 60.0
            task = asyncio.create_task(talks.say(got.id, "ada", "Hello?", version=0))
            while not speakers[0].heard:
                await asyncio.sleep(0.01)
            theirs = await asyncio.to_thread(talks.queue.claim, "bob")
            assert isinstance(theirs, Assigned)
            assert talks.is_under_way(got.id)
            await asyncio.to_thread(talks.queue.skip, theirs.id, "bob", "no time")
            speakers[0].gate.set()
            await task

        asyncio.run(both())
        assert isinstance(talks.queue.claim("bob", kinds=("compare",)), Nothing)
