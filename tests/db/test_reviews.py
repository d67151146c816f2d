"""Reviews of the store as solutions, on every database."""

from __future__ import annotations

from workbench import ROUND, answer, claim, fill, plain

from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.steps import read_reviews
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask


def test_standing_reviews_are_solutions_and_gold_ones_are_not(url: str) -> None:
    with LabelStore(url) as store:
        fill(store, 1)
        samples = store.add_samples([answer("p0", text) for text in ("one two three", "four")])
        queue = LabelQueue(store, plain(gold_frac=1.0))
        steps = ["one", "two", "three"]
        gold = NewTask("review", samples[1], details={"steps": ["four"]}, answer={"steps": ["good"]})
        queue.add([NewTask("review", samples[0], details={"steps": steps}), gold], round_id=ROUND)
        for _ in range(2):
            got = claim(queue, "ada")
            value = {"steps": ["good", "bad"] if got.details["steps"] == steps else ["good"]}
            queue.submit(got.id, "ada", value, client_key=got.id)
        (found,), empty = read_reviews(store)
        assert (found.steps, found.verdicts, found.right) == (("one", "two", "three"), ("good", "bad"), False)
        assert found.prompt.messages[-1].content == "Say p0."
        assert empty == 0
