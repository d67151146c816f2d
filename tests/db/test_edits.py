"""What a run that learns from edits asks of the queue and the store."""

from workbench import ROUND, answer, claim, fill, finish, plain

from postgrad.feedback.people import People
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.store import LabelStore
from postgrad.feedback.task_list import change_tasks
from postgrad.feedback.tasks import NewTask


def test_answers_wait_until_they_are_edited_or_their_tasks_closed(url: str) -> None:
    with LabelStore(url) as store:
        fill(store, 4)
        samples = store.add_samples(answer(f"p{i}", f"draft {i}", policy_version=1) for i in range(4))
        other = store.add_samples([answer("p0", "of another round of samples", policy_version=2)])
        queue = LabelQueue(store, plain())
        queue.add([NewTask("edit", s) for s in (*samples, *other)] + [NewTask("rate", samples[0])], round_id=ROUND)

        def waiting() -> int:
            return queue.waiting("edit", round_id=ROUND, sample_ids=samples)

        assert waiting() == 4
        first = claim(queue, "ada")
        assert waiting() == 4, "a lease is no answer"
        finish(queue, "ada", {"text": "better"})
        assert waiting() == 3
        queue.undo("ada")
        assert waiting() == 4
        change_tasks(store, [first.task_id], by=People(store).local(), state="closed")
        assert waiting() == 3
        assert queue.waiting("edit", round_id="another", sample_ids=samples) == 0


def test_edits_are_found_by_round_and_stage(url: str) -> None:
    with LabelStore(url) as store:
        fill(store, 1)
        (sample,) = store.add_samples([answer("p0", "draft", policy_version=1)])
        queue = LabelQueue(store, plain())
        queue.add([NewTask("edit", sample)], round_id=ROUND)
        finish(queue, "ada", {"text": "better"})
        for found in (store.edits(), store.edits(round_id=ROUND), store.edits(round_id=ROUND, stage="rl")):
            assert [(e.sample_id, e.text) for e in found] == [(sample, "better")]
        assert list(store.edits(round_id="another")) == []
        assert list(store.edits(stage="sft")) == []
