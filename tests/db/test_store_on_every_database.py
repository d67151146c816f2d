import threading

from postgrad.errors import StoreError
from postgrad.feedback.records import Sample, Submission
from postgrad.feedback.store import LabelStore
from postgrad.types import Conversation, Example, Message, Preference, SamplingParams

ROUND = "0001-test"


def answer_of(prompt_id: str, text: str) -> Sample:
    return Sample(
        prompt_id=prompt_id,
        round_id=ROUND,
        stage="rl",
        checkpoint="cd" * 32,
        policy_version=1,
        params=SamplingParams(max_tokens=8),
        seed=2**64 - 1,
        text=text,
        token_ids=(1, 2),
        finish_reason="length",
    )


def fill(store: LabelStore, num: int) -> list[str]:
    store.add_round(ROUND, recipe="quickstart")
    prompts = [Example(f"p{i}", Conversation((Message("user", f"Größe {i}? \u4f60\u597d"),))) for i in range(num)]
    store.add_prompts(prompts)
    store.add_raters("simulated", {"r0": {"temperature": 0.5}, "r1": {"temperature": 0.1}})
    questions = [store.add_samples([answer_of(p.id, "yes"), answer_of(p.id, "no")]) for p in prompts]
    return store.ask(questions, purpose="arena", round_id=ROUND)


def test_the_whole_path_from_prompt_to_preference_works_and_is_idempotent(url: str) -> None:
    with LabelStore(url) as store:
        ids = fill(store, 5)
        assert fill(store, 5) == ids
        for _ in range(2):
            store.answer(
                Submission(Preference(i, rater, ((1,), (0,)), strength=3), order)
                for i in ids
                for rater in ("r0", "r1")
                for order in ((0, 1), (1, 0))
            )
        assert store.counts() == {
            "prompts": 5,
            "samples": 10,
            "raters": 2,
            "comparisons": 5,
            "edits": 0,
            "preferences": 20,
        }
        first = next(iter(store.preferences(purpose="arena")))
        assert first.comparison.prompt.messages[0].content.startswith("Größe")
        assert next(iter(store.samples(round_id=ROUND))).seed == 2**64 - 1
        undone = store.undo("r1", purpose="arena", round_id=ROUND)
        assert undone is not None
        assert undone.id == ids[-1]


def test_raters_who_answer_at_the_same_moment_lose_nothing(url: str) -> None:
    with LabelStore(url) as store:
        ids = fill(store, 10)
    failures: list[StoreError] = []

    def answer_all(rater_id: str) -> None:
        try:
            with LabelStore(url) as own:
                for i in ids:
                    own.answer([Submission(Preference(i, rater_id, ((0,), (1,))), (0, 1))])
        except StoreError as e:
            failures.append(e)

    threads = [threading.Thread(target=answer_all, args=(rater_id,)) for rater_id in ("r0", "r1")]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []
    with LabelStore(url) as store:
        assert store.counts()["preferences"] == 20
