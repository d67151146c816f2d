"""Labels are split by what a conversation begins with."""

from __future__ import annotations

from postgrad.data.mixture import split_of
from postgrad.feedback.pair_sources import split_labels
from postgrad.feedback.pairs import Answered, Pair
from postgrad.types import Conversation, Message


def pair(words: str, *, tie: bool = False) -> Pair:
    prompt = Conversation((Message("user", words),))
    return Pair(words, prompt, Answered("a"), Answered("b"), "ada", "human", "labels", tie=tie)


def side(words: str) -> str:
    return split_of(words, {"train": 0.8, "validation": 0.2}, "reward")


TRAIN = [words for i in range(30) if side(words := f"{i}?") == "train"]
VALIDATION = [words for i in range(30) if side(words := f"{i}?") == "validation"]


def test_the_side_is_that_of_the_first_message_in_every_mixture() -> None:
    labels = [pair(words) for words in (*TRAIN, *VALIDATION)]
    assert split_labels(labels, 0.2) == ([pair(w) for w in TRAIN], [pair(w) for w in VALIDATION])
    long = Conversation((Message("user", VALIDATION[0]), Message("assistant", "x"), Message("user", TRAIN[0])))
    grown = Pair("grown", long, Answered("a"), Answered("b"), "ada", "human", "labels")
    assert grown in split_labels([*labels, grown], 0.2)[1]


def test_a_part_that_would_teach_nothing_takes_one_first_message_with_all_that_is_about_it() -> None:
    labels = [pair(words) for words in (*TRAIN[:3], TRAIN[2])]
    tied = pair(VALIDATION[0], tie=True)
    train, validation = split_labels([*labels, tied], 0.2)
    assert [p.prompt_id for p in train] == TRAIN[:2]
    assert [p.prompt_id for p in validation] == [VALIDATION[0], TRAIN[2], TRAIN[2]]
    assert split_labels([*labels, tied], 0.2, teaches=lambda _: True) == (labels, [tied])
    assert split_labels([pair(VALIDATION[0]), pair(VALIDATION[1])], 0.2)[0] == [pair(VALIDATION[1])]
    assert split_labels(labels[:1], 0.2) == (labels[:1], []), "one is too few for two parts"
