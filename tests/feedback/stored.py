"""A small round in a store, for the tests of everything that reads one."""

from postgrad.feedback.records import Sample
from postgrad.feedback.store import LabelStore
from postgrad.types import Conversation, Example, Message, SamplingParams

ROUND = "0001-test"


def example(number: int, question: str = "") -> Example:
    return Example(
        id=f"p{number}",
        prompt=Conversation((Message("system", "Be brief."), Message("user", question or f"Question {number}?"))),
        target="yes",
        metadata={"split": "rm", "constraints": ({"kind": "one_sentence"},)},
    )


def sample(prompt: int, text: str, *, stage: str = "sft") -> Sample:
    return Sample(
        prompt_id=f"p{prompt}",
        round_id=ROUND,
        stage=stage,
        checkpoint="ab" * 32,
        policy_version=3,
        params=SamplingParams(max_tokens=40, stop=("\n",), stop_ids=(2,)),
        seed=2**63 + 11,
        text=text,
        token_ids=(5, 6, 2),
        finish_reason="stop",
    )


def fill(store: LabelStore, num_prompts: int = 4) -> list[str]:
    """A round with one comparison of two answers per prompt; the comparison ids."""
    store.add_round(ROUND, recipe="quickstart")
    store.add_prompts(example(i) for i in range(num_prompts))
    questions = []
    for i in range(num_prompts):
        questions.append(store.add_samples([sample(i, f"Good {i}."), sample(i, f"Bad {i}.", stage="initial")]))
    return store.ask(questions, purpose="train", round_id=ROUND)
