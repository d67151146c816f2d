import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from judging import Endpoint, Reply, always_a, playing, prefers_x
from sqlalchemy import select
from workbench import A_BETTER, ROUND, fill, finish, queue_of

from postgrad.db.tables import LabelRow, RaterRow
from postgrad.errors import EngineError, StoreError
from postgrad.feedback.endpoint_judge import EndpointJudge
from postgrad.feedback.judge_prompt import RUBRIC, Verdict
from postgrad.feedback.judges import (
    MAX_SILENT,
    JudgeSummary,
    agreement_with_people,
    judge_comparisons,
    judge_id,
    rater_params,
)
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Submission
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask
from postgrad.types import Conversation, Preference

JUDGE = "judge-x"
DIED = -signal.SIGKILL


def ask(store: LabelStore, endpoint: Endpoint, *, concurrency: int = 4, rater_id: str = JUDGE) -> JudgeSummary:
    comparisons = list(store.comparisons(purpose="train", round_id=ROUND))

    async def run() -> JudgeSummary:
        async with EndpointJudge(endpoint.url, model="m", rubric=RUBRIC, timeout_s=60.0, backoff_s=0.01) as judge:
            return await judge_comparisons(store, judge, comparisons, rater_id=rater_id, concurrency=concurrency)

    return asyncio.run(run())


def labels(store: LabelStore, rater_id: str = JUDGE) -> list[LabelRow]:
    with store.reading() as session:
        return list(session.scalars(select(LabelRow).where(LabelRow.rater_id == rater_id).order_by(LabelRow.id)))


def test_every_comparison_is_judged_in_both_orders_and_every_verdict_is_a_label(url: str) -> None:
    with LabelStore(url) as store, playing(prefers_x) as endpoint:
        ids = fill(store, 6)
        summary = ask(store, endpoint)
        rows = labels(store)
        assert Counter((row.comparison_id, row.display_order) for row in rows) == Counter(
            {(i, order): 1 for i in ids for order in ("0,1", "1,0")}
        )
        assert all(row.value["tiers"] == [[0], [1]] for row in rows)
        assert all(row.kind == "compare" and row.value["strength"] is None for row in rows)
        first = next(row for row in rows if row.comparison_id == ids[2] and row.display_order == "1,0")
        assert first.rationale == "One of them says 'y p2', the other 'x p2'.\nVerdict: B"
        assert all(row.milliseconds is not None and row.milliseconds >= 5 for row in rows)
        assert summary == JudgeSummary(judged=12, abstained={}, flips=0, combined=dict.fromkeys(ids, ((0,), (1,))))
        with store.reading() as session:
            rater = session.get_one(RaterRow, JUDGE)
            assert rater.kind == "model"
            assert rater.params["model"] == "m"
            assert endpoint.url == f"http://{rater.params['host']}/v1"
            assert rater.params["rubric"] == RUBRIC
            assert rater.params.keys() == {"model", "host", "rubric", "rubric_sha256", "seed", "template"}


def test_a_judge_that_likes_the_first_place_flips_everywhere_and_decides_nothing(url: str) -> None:
    with LabelStore(url) as store, playing(always_a) as endpoint:
        ids = fill(store, 5)
        summary = ask(store, endpoint)
        assert (summary.judged, summary.flips) == (10, 5)
        assert summary.combined == dict.fromkeys(ids, ((0, 1),))
        assert {row.display_order: row.value["tiers"] for row in labels(store)} == {
            "0,1": [[0], [1]],
            "1,0": [[1], [0]],
        }


def test_a_tie_in_one_order_alone_is_a_flip_and_two_ties_are_none(url: str) -> None:
    def wavering(a: str, b: str, times: int) -> Reply:
        if "p0" in a:
            return "Verdict: tie"
        return "Verdict: tie" if a.startswith("x") else "Verdict: B"

    with LabelStore(url) as store, playing(wavering) as endpoint:
        ids = fill(store, 2)
        summary = ask(store, endpoint)
        assert (summary.judged, summary.flips) == (4, 1)
        assert summary.combined == dict.fromkeys(ids, ((0, 1),))


def test_an_abstention_keeps_its_reason_and_what_was_written_and_is_no_tie(url: str) -> None:
    written = "I cannot see the picture. " * 200 + "\x00\nVerdict: cannot judge"

    def shy(a: str, b: str, times: int) -> Reply:
        return written if a == "y p0" else prefers_x(a, b, times)

    with LabelStore(url) as store, playing(shy) as endpoint:
        ids = fill(store, 2)
        summary = ask(store, endpoint)
        (row,) = [row for row in labels(store) if not row.value["tiers"]]
        assert (row.comparison_id, row.display_order) == (ids[0], "1,0")
        assert row.value["cannot_judge"] == "the judge says that it cannot judge"
        assert row.rationale == written.replace("\x00", "\ufffd")
        assert summary.judged == 3
        assert summary.abstained == {"the judge says that it cannot judge": 1}
        assert summary.combined == {ids[1]: ((0,), (1,))}, "one order alone decides nothing"


def test_the_same_call_again_asks_nothing_and_says_the_same(url: str) -> None:
    with LabelStore(url) as store, playing(prefers_x) as endpoint:
        fill(store, 3)
        first = ask(store, endpoint)
        fill(store, 1, first=3)
        second = ask(store, endpoint)
        assert len(endpoint.bodies) == 8
        assert (first.judged, second.judged) == (6, 8)
        assert ask(store, endpoint) == second
        assert len(endpoint.bodies) == 8


def test_no_more_questions_than_asked_for_are_under_way(url: str) -> None:
    with LabelStore(url) as store, playing(prefers_x) as endpoint:
        fill(store, 12)
        ask(store, endpoint, concurrency=3)
        assert endpoint.most_under_way == 3


RUN = """
import sys
from judging import Endpoint, prefers_x
from test_judges import ask
from postgrad.feedback.store import LabelStore

endpoint = Endpoint(prefers_x)
endpoint.url = sys.argv[2]
with LabelStore(sys.argv[1]) as store:
    ask(store, endpoint)
"""


def test_a_run_that_is_killed_goes_on_without_asking_again(url: str) -> None:
    folders = [Path(__file__).parent, Path(__file__).parents[1], Path(__file__).parents[2] / "src"]
    with LabelStore(url) as store, playing(prefers_x) as endpoint:
        ids = fill(store, 40)
        run = subprocess.Popen(
            [sys.executable, "-c", RUN, url, endpoint.url],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        )
        for _ in range(25):
            assert endpoint.answered.acquire(timeout=60)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == DIED
        kept = len(labels(store))
        asked = len(endpoint.bodies)
        assert 25 - 4 <= kept < 80
        summary = ask(store, endpoint)
        assert summary.judged == 80
        assert len(endpoint.bodies) == asked + 80 - kept
        assert Counter((row.comparison_id, row.display_order) for row in labels(store)) == Counter(
            {(i, order): 1 for i in ids for order in ("0,1", "1,0")}
        )


class Wordy:
    """Says the same in other words, and lets another one speak before each answer."""

    def __init__(self, words: str) -> None:
        self.words, self.asked = words, 0
        self.params = {"model": "m", "host": "h", "rubric": RUBRIC, "seed": 0}

    async def judge(self, prompt: Conversation, first: str, second: str) -> Verdict:
        self.asked += 1
        await asyncio.sleep(0)
        return Verdict("first", self.words, "")


def test_of_the_same_judge_twice_at_once_the_first_verdict_counts(url: str) -> None:
    with LabelStore(url) as store, LabelStore(url) as other:
        fill(store, 3)
        comparisons = list(store.comparisons(purpose="train"))
        one, two = Wordy("one"), Wordy("two")

        async def both() -> list[JudgeSummary]:
            return await asyncio.gather(
                judge_comparisons(store, one, comparisons, rater_id=JUDGE, concurrency=2),
                judge_comparisons(other, two, comparisons, rater_id=JUDGE, concurrency=3),
            )

        summaries = asyncio.run(both())
        assert (one.asked, two.asked) == (6, 6)
        rows = labels(store)
        assert len({(row.comparison_id, row.display_order) for row in rows}) == len(rows) == 6
        assert {row.rationale for row in rows} <= {"one", "two"}
        assert summaries[-1].judged == 6


def test_a_judge_that_fell_silent_stops_the_run_and_leaves_its_questions_open(url: str) -> None:
    replies = iter(["Verdict: tie"] * 5)

    def dying(a: str, b: str, times: int) -> Reply:
        return next(replies, (503, "no room for you"))

    with LabelStore(url) as store, playing(dying) as endpoint:
        fill(store, 20)
        with pytest.raises(EngineError, match=f"^{MAX_SILENT} questions in a row .*HTTP 503: no room for you"):
            ask(store, endpoint)
        assert len(labels(store)) == 5
        endpoint.play = prefers_x
        assert ask(store, endpoint).judged == 40


def test_questions_that_fail_alone_are_abstentions_beside_the_others(url: str) -> None:
    def moody(a: str, b: str, times: int) -> Reply:
        return (500, "<b>oops\x1b[2J</b>") if a == "x p1" else prefers_x(a, b, times)

    with LabelStore(url) as store, playing(moody) as endpoint:
        fill(store, 4)
        summary = ask(store, endpoint)
        assert summary.judged == 7
        assert summary.abstained == {"HTTP 500: <b>oops\ufffd[2J</b>, 4 times": 1}
        (row,) = [row for row in labels(store) if not row.value["tiers"]]
        assert row.rationale == ""


def test_a_question_without_answer_is_stored_with_the_next_that_has_one(url: str) -> None:
    replies = iter([(413, "too long"), "Verdict: tie"])
    with LabelStore(url) as store, playing(lambda a, b, times: next(replies)) as endpoint:
        fill(store, 1)
        summary = ask(store, endpoint, concurrency=1)
        assert (summary.judged, summary.abstained) == (1, {"HTTP 413: too long": 1})
        assert [row.value["tiers"] for row in labels(store)] == [[], [[0, 1]]]


def test_agreement_counts_what_most_people_said_where_they_said_something(url: str) -> None:
    with LabelStore(url) as store, playing(prefers_x) as endpoint:
        ids = fill(store, 6)
        summary = ask(store, endpoint)

        def say(person: str, which: int, *tiers: tuple[int, ...]) -> None:
            store.answer([Submission(Preference(ids[which], person, tiers, rationale="?"), (0, 1))])

        say("ada", 0, (0,), (1,))
        say("bob", 0, (0,), (1,))
        say("cyd", 0, (1,), (0,))
        say("ada", 1, (1,), (0,))
        say("ada", 2, (1, 0))
        say("ada", 3)  # an abstention
        say("ada", 4, (0,), (1,))
        say("bob", 4, (1,), (0,))  # divided
        store.add_raters("simulated", {"sim": {}})
        say("sim", 5, (0,), (1,))
        assert agreement_with_people(store, summary.combined, purpose="train", round_id=ROUND) == (1, 3)
        tied = {**summary.combined, ids[2]: ((0, 1),)}
        assert agreement_with_people(store, tied, purpose="train", round_id=None) == (2, 3)


def test_a_judge_never_passes_for_people(url: str) -> None:
    with LabelStore(url) as store, playing(prefers_x) as endpoint:
        queue = queue_of(store, 3, overlap=2)
        ask(store, endpoint)
        assert list(store.preferences(purpose="train")) == []
        own = list(store.preferences(purpose="train", rater_id=JUDGE))
        assert {j.rater_kind for j in own} == {"model"}
        assert len(own) == 6
        done = finish(queue, "ada", A_BETTER)
        (judged,) = store.preferences(purpose="train")
        assert judged.preference.rater_id == "ada"
        assert isinstance(queue.claim("bob"), type(done)), "its labels take nobody's place"
        with pytest.raises(StoreError, match="with another kind"):
            store.add_raters("human", {JUDGE: rater_params_of(store)})


def rater_params_of(store: LabelStore) -> dict[str, object]:
    with store.reading() as session:
        return session.get_one(RaterRow, JUDGE).params


def test_what_a_judge_answered_does_not_push_a_question_back_in_the_line(url: str) -> None:
    with LabelStore(url) as store, playing(prefers_x) as endpoint:
        fill(store, 3)
        before = store.next_for("ada", purpose="train", round_id=ROUND)
        assert before is not None
        comparisons = [before]

        async def run() -> None:
            async with EndpointJudge(endpoint.url, model="m", rubric=RUBRIC) as judge:
                await judge_comparisons(store, judge, comparisons, rater_id=JUDGE, concurrency=1)

        asyncio.run(run())
        assert len(labels(store)) == 2
        assert store.next_for("ada", purpose="train", round_id=ROUND) == before


@pytest.mark.parametrize("kind", ["model", "simulated"])
def test_the_queue_hands_nothing_to_a_machine_and_takes_nothing_from_it(url: str, kind: str) -> None:
    with LabelStore(url) as store:
        queue = LabelQueue(store)
        (comparison,) = fill(store, 1)
        queue.add([NewTask("compare", comparison)], round_id=ROUND)
        store.add_raters(kind, {"robot": {}})  # type: ignore[arg-type]
        said = f"rater 'robot' is of kind '{kind}', and the queue is for people"
        for act in (
            lambda: queue.claim("robot"),
            lambda: queue.submit("any", "robot", A_BETTER, client_key="k"),
            lambda: queue.skip("any", "robot", "no"),
            lambda: queue.undo("robot"),
        ):
            with pytest.raises(StoreError, match=said):
                act()
        assert finish(queue, "ada", A_BETTER).order in ((0, 1), (1, 0))


def test_another_rubric_seed_model_or_host_is_another_rater(url: str) -> None:
    def judge(endpoint: str = "http://h/v1", **changes: object) -> EndpointJudge:
        given = {"model": "m", "rubric": RUBRIC, "seed": 0} | changes
        return EndpointJudge(endpoint, **given)  # type: ignore[arg-type]

    assert judge_id(judge()) == judge_id(judge()) == judge_id(judge(timeout_s=3.0))
    others = [judge(rubric="Be kind."), judge(seed=1), judge(model="n"), judge("http://i/v1"), judge()]
    assert len({judge_id(other) for other in others}) == 5
    with LabelStore(url) as store:
        store.add_raters("model", {"j": rater_params(judge())})
        with pytest.raises(StoreError, match="another params"):
            store.add_raters("model", {"j": rater_params(judge(seed=1))})
