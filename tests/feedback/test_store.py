import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from stored import ROUND, example, fill, sample

from postgrad.db.engine import sqlite_url
from postgrad.errors import StoreError
from postgrad.feedback.records import Submission
from postgrad.feedback.store import LabelStore
from postgrad.types import Edit, Preference

EVERYTHING = {"prompts": 4, "samples": 8, "raters": 1, "comparisons": 4, "edits": 0, "preferences": 0}


@pytest.fixture
def store(labels_url: str) -> Iterator[LabelStore]:
    with LabelStore(labels_url, busy_timeout_s=0.2) as opened:
        opened.add_raters("human", {"ada": {}})
        yield opened


def better_first(comparison_id: str, rater_id: str = "ada") -> Preference:
    return Preference(comparison_id, rater_id, ((0,), (1,)), strength=2, rationale="clearer", milliseconds=900)


def test_a_preference_comes_back_with_all_it_is_about(store: LabelStore) -> None:
    ids = fill(store)
    before = datetime.now(UTC)
    store.answer([Submission(better_first(ids[1]), order=(1, 0))])
    (got,) = store.preferences(purpose="train", round_id=ROUND)
    assert got.preference == better_first(ids[1])
    assert (got.order, got.prompt_id, got.purpose, got.rater_kind) == ((1, 0), "p1", "train", "human")
    assert got.comparison.prompt == example(1).prompt
    assert got.comparison.answers == ("Good 1.", "Bad 1.")
    assert got.stages == ("sft", "initial")
    assert got.details == {"split": "rm", "constraints": [{"kind": "one_sentence"}]}
    assert before - timedelta(seconds=1) < got.created_at < datetime.now(UTC) + timedelta(seconds=1)


def test_a_sample_comes_back_as_it_was_with_its_id(store: LabelStore) -> None:
    fill(store)
    got = list(store.samples(round_id=ROUND, stage="initial"))
    assert sorted(got, key=lambda s: s.prompt_id) == [sample(i, f"Bad {i}.", stage="initial") for i in range(4)]
    assert {s.id for s in got} == {sample(i, f"Bad {i}.", stage="initial").id for i in range(4)}
    assert len({s.id for s in store.samples(round_id=ROUND)}) == 8


def test_writing_everything_twice_stores_it_once(store: LabelStore) -> None:
    ids = fill(store)
    assert fill(store) == ids
    assert store.counts() == EVERYTHING
    for _ in range(2):
        store.answer(Submission(better_first(i), order=(0, 1)) for i in ids)
    assert store.counts() == EVERYTHING | {"preferences": 4}


def test_a_submission_that_arrives_twice_counts_once_and_a_changed_one_is_refused(store: LabelStore) -> None:
    comparison_id = fill(store)[0]
    first = Submission(better_first(comparison_id), order=(0, 1), client_key="k1")
    store.answer([first, first])
    store.answer([first])
    assert store.counts()["preferences"] == 1
    changed = replace(first, preference=replace(first.preference, tiers=((1,), (0,))))
    with pytest.raises(StoreError, match=r"client key 'k1' names another answer, or an undone one; use a new key"):
        store.answer([changed])
    with pytest.raises(StoreError, match="client key 'k2' names two different answers"):
        store.answer([replace(first, client_key="k2"), replace(changed, client_key="k2")])


def test_a_rater_answers_a_question_once_in_each_order(store: LabelStore) -> None:
    comparison_id = fill(store)[0]
    store.answer([Submission(better_first(comparison_id), order) for order in ((0, 1), (1, 0))])
    assert store.counts()["preferences"] == 2
    with pytest.raises(StoreError, match="must undo first"):
        store.answer([Submission(better_first(comparison_id), (0, 1), client_key="again")])
    assert store.counts()["preferences"] == 2


def test_one_bad_answer_in_a_batch_leaves_nothing_behind(store: LabelStore) -> None:
    ids = fill(store)
    batch = [Submission(better_first(i), (0, 1)) for i in (*ids, "no-such-question")]
    with pytest.raises(StoreError, match="holds no question 'no-such-question'"):
        store.answer(batch)
    assert store.counts()["preferences"] == 0


def test_undo_takes_back_the_last_answer_of_that_rater_only(store: LabelStore) -> None:
    ids = fill(store)
    store.add_raters("human", {"bob": {}})
    store.answer([Submission(better_first(ids[0]), (0, 1)), Submission(better_first(ids[1]), (0, 1))])
    store.answer([Submission(better_first(ids[2], "bob"), (0, 1))])
    undone = store.undo("ada", purpose="train", round_id=ROUND)
    assert undone is not None
    assert undone.id == ids[1]
    standing = [j.preference.comparison_id for j in store.preferences(purpose="train", round_id=ROUND)]
    assert standing == [ids[0], ids[2]]
    store.answer([Submission(better_first(ids[1]), (0, 1), client_key="second thought")])
    assert store.counts()["preferences"] == 3
    for _ in range(2):
        store.undo("ada", purpose="train", round_id=ROUND)
    assert store.undo("ada", purpose="train", round_id=ROUND) is None


def test_the_next_question_is_one_the_rater_has_not_answered_with_the_fewest_answers(store: LabelStore) -> None:
    ids = sorted(fill(store))
    store.add_raters("human", {"bob": {}})
    store.answer([Submission(better_first(ids[0], "bob"), (0, 1))])
    seen = []
    while question := store.next_for("ada", purpose="train", round_id=ROUND):
        seen.append(question.id)
        store.answer([Submission(better_first(question.id), (0, 1))])
    assert seen == [*ids[1:], ids[0]]
    assert store.next_for("ada", purpose="arena", round_id=ROUND) is None


def test_questions_need_known_different_samples_of_one_prompt(store: LabelStore) -> None:
    fill(store)
    first, second = sample(0, "Good 0.").id, sample(1, "Good 1.").id
    for bad in ([first, second], [first, first], [first]):
        with pytest.raises(StoreError, match="needs two or more different samples of one prompt"):
            store.ask([bad], purpose="train", round_id=ROUND)
    with pytest.raises(StoreError, match="holds no sample 'nowhere'; add the samples before you ask"):
        store.ask([[first, "nowhere"]], purpose="train", round_id=ROUND)
    assert store.counts()["comparisons"] == 4


def test_a_prompt_or_rater_whose_content_changed_under_its_id_is_refused(store: LabelStore) -> None:
    fill(store)
    with pytest.raises(StoreError, match=r"holds prompt 'p2' with another conversation; give the changed one a new id"):
        store.add_prompts([example(9), example(2, "Something else?")])
    assert store.counts()["prompts"] == 4
    with pytest.raises(StoreError, match="holds rater 'ada' with another kind"):
        store.add_raters("simulated", {"ada": {}})


def test_a_sample_of_an_unknown_prompt_is_refused(store: LabelStore) -> None:
    store.add_round(ROUND, recipe="quickstart")
    with pytest.raises(StoreError, match="refers to something unknown"):
        store.add_samples([sample(0, "Orphan.")])


def test_an_edit_is_kept_once_and_must_start_from_the_sample(store: LabelStore) -> None:
    fill(store)
    edit = Edit(sample_id=sample(0, "Bad 0.", stage="initial").id, rater_id="ada", original="Bad 0.", text="Better.")
    store.record_edits([edit])
    store.record_edits([edit])
    assert list(store.edits()) == [edit]
    with pytest.raises(StoreError, match="does not start from that sample's text"):
        store.record_edits([replace(edit, original="Bad 1.")])


def test_all_questions_of_a_round_are_listed_by_id(store: LabelStore) -> None:
    ids = fill(store)
    assert [c.id for c in store.comparisons(purpose="train", round_id=ROUND)] == sorted(ids)


def test_a_writer_in_another_process_is_waited_for_and_then_named(store: LabelStore, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "labels.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="is locked by another process; wait for it or stop it"):
        store.add_round("0002-test", recipe="quickstart")
    assert store.counts()["raters"] == 1
    other.execute("ROLLBACK")
    store.add_round("0002-test", recipe="quickstart")
    other.close()


WRITE_SLOWLY = """
import sys
import time
from postgrad.feedback.records import Submission
from postgrad.feedback.store import LabelStore
from postgrad.types import Preference
from stored import fill

with LabelStore(sys.argv[1]) as store:
    store.add_raters("human", {"ada": {}})
    for comparison_id in fill(store, num_prompts=60):
        store.answer([Submission(Preference(comparison_id, "ada", ((0,), (1,))), (0, 1))])
        print(comparison_id, flush=True)
        time.sleep(0.02)
"""


def test_a_killed_writer_loses_nothing_acknowledged_and_starting_over_completes_it(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "labels.db")
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_SLOWLY, url],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().strip() for _ in range(10)]
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate()[0].split()
    assert len(acknowledged) + len(rest) < 60
    with LabelStore(url) as store:
        kept = {j.preference.comparison_id for j in store.preferences(purpose="train", round_id=ROUND)}
        assert kept >= {*acknowledged, *rest}
        ids = fill(store, num_prompts=60)
        store.answer(Submission(Preference(i, "ada", ((0,), (1,))), (0, 1)) for i in ids)
        assert (store.counts()["comparisons"], store.counts()["preferences"]) == (60, 60)
