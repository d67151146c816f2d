import pytest

from postgrad.errors import DataError
from postgrad.feedback.utility import (
    REWARDED_KINDS,
    UNREWARDED,
    UNSEEN_KINDS,
    measures,
    normalise,
    repeated_trigrams,
    satisfies,
    sentences,
    utility,
)

MET_AND_BROKEN = [
    ({"kind": "max_words", "value": 8}, "One two three four five six seven - eight.", "1 2 3 4 5 6 7 8 9"),
    ({"kind": "one_sentence"}, "Dr. J. K. Lee said 3.5 is fine.", "It is. It really is."),
    ({"kind": "one_sentence"}, "Paris", "First line.\nSecond line."),
    ({"kind": "lowercase"}, "it is paris.", "it is Paris."),
    ({"kind": "starts_with", "value": "Answer:"}, " Answer: Paris.", "The Answer: Paris."),
    ({"kind": "starts_with", "value": "Answer:"}, "Answer: 4", "Answer:"),
    ({"kind": "ends_with", "value": "!"}, "Paris!\n", "Paris."),
    ({"kind": "ends_with", "value": "!"}, "Paris!!!", "!"),
    ({"kind": "no_commas"}, "red and green", "red, green"),
    ({"kind": "min_sentences", "value": 2}, "It is. Yes, it is!", "It is. And then it"),
    ({"kind": "quoted"}, '"Paris."', '"Paris'),
    ({"kind": "quoted"}, "\u201cParis\u201d", "'Paris'"),
]


@pytest.mark.parametrize(("constraint", "met", "broken"), MET_AND_BROKEN)
def test_a_constraint_tells_an_answer_that_meets_it_from_one_that_does_not(
    constraint: dict[str, object], met: str, broken: str
) -> None:
    assert satisfies(constraint, met)
    assert not satisfies(constraint, broken)


@pytest.mark.parametrize("kind", REWARDED_KINDS + UNSEEN_KINDS)
@pytest.mark.parametrize("blank", ["", "  \n", '"', '""', "..."])
def test_an_answer_without_a_word_meets_no_constraint(kind: str, blank: str) -> None:
    value = {"max_words": 8, "min_sentences": 1, "starts_with": "", "ends_with": ""}.get(kind)
    assert not satisfies({"kind": kind, "value": value}, blank)


def test_an_unknown_kind_and_a_missing_value_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"unknown constraint kind 'rhymes'; use one of max_words, .*quoted"):
        satisfies({"kind": "rhymes"}, "x")
    with pytest.raises(DataError, match=r"'max_words' needs a int under 'value', not '8'"):
        satisfies({"kind": "max_words", "value": "8"}, "x")


def test_normalisation_removes_case_punctuation_articles_and_thousands_separators() -> None:
    text = "The U.S. has 1,000.5 miles - don't you know? State-of-the-art, 3rd."
    assert normalise(text) == ["us", "has", "1000.5", "miles", "dont", "you", "know", "state", "of", "art", "3rd"]


def test_sentences_end_at_final_punctuation_and_line_breaks_but_not_at_titles_or_list_numbers() -> None:
    assert sentences('Mr. Poe left. "Why?" he asked!\n1. Rain\n...') == [
        "Mr. Poe left.",
        '"Why?"',
        "he asked!",
        "1. Rain",
    ]


def test_repeated_trigrams_are_the_share_seen_before() -> None:
    assert repeated_trigrams("a b c d") == 0.0
    assert repeated_trigrams("a b c a b c") == pytest.approx(1 / 4)
    assert repeated_trigrams("no no no no no no") == pytest.approx(3 / 4)
    assert repeated_trigrams("too short") == 0.0


def test_a_short_reference_counts_only_as_a_whole_in_order() -> None:
    def contained(text: str) -> float | None:
        asked = measures(text, finish_reason="stop", reference="The Treaty of Versailles", constraints=(), prompt="?")
        return asked["reference_contained"]

    assert contained("It was the treaty of Versailles, in 1919.") == 1.0
    assert contained("Versailles has a treaty of sorts.") == 0.0


def test_a_long_reference_counts_by_the_share_of_its_content_words() -> None:
    reference = "A glacier is a slow river of compacted snow"
    got = measures("Glaciers: a river of snow", finish_reason="stop", reference=reference, constraints=(), prompt="?")
    assert got["reference_contained"] == pytest.approx(2 / 5)


def test_reference_f1_is_the_harmonic_mean_of_precision_and_recall_over_words() -> None:
    got = measures("It is the blue whale", finish_reason="stop", reference="a blue whale", constraints=(), prompt="?")
    assert got["reference_f1"] == pytest.approx(2 * 2 / (4 + 2))


def test_what_the_prompt_does_not_ask_for_is_none_and_weighs_nothing() -> None:
    got = measures("Yes.", finish_reason="stop", reference=None, constraints=(), prompt="Is it?")
    absent = ("constraints_met", "unseen_constraints_met", "reference_contained", "reference_f1")
    assert [got[name] for name in absent] == [None] * 4
    assert utility(got) == 1.0


def test_ending_properly_needs_the_stop_token_and_final_punctuation_or_a_few_words() -> None:
    def ends(text: str, finish_reason: str = "stop") -> float | None:
        return measures(text, finish_reason=finish_reason, reference=None, constraints=(), prompt="?")["ends_properly"]

    assert [ends('He said "no."'), ends("blue and green")] == [1.0, 1.0]
    assert [ends("It is a long way to the"), ends("It is.", "length"), ends(" ")] == [0.0, 0.0, 0.0]


def test_question_echo_is_the_share_of_the_questions_content_words_copied() -> None:
    prompt = "What is the capital of France?"
    got = measures("The capital is Paris", finish_reason="stop", reference=None, constraints=(), prompt=prompt)
    assert got["question_echo"] == pytest.approx(1 / 2)


def test_the_utility_is_the_declared_sum() -> None:
    got = measures(
        "Answer: the capital is Paris and Paris and Paris and Paris it is!",
        finish_reason="stop",
        reference="Paris",
        constraints=({"kind": "starts_with", "value": "Answer:"}, {"kind": "max_words", "value": 8}),
        prompt="What is the capital?",
    )
    # 13 words; trigrams "paris and paris" x3 and "and paris and" x2: 3 of 11 repeated; one of two constraints met.
    assert utility(got) == pytest.approx(1.5 / 2 + 1.0 + 1.0 - 3 / 11 - 0.02 * 5)


def test_concision_is_charged_up_to_the_cap_and_empty_answers_are_worst() -> None:
    def worth(text: str) -> float:
        return utility(measures(text, finish_reason="length", reference=None, constraints=(), prompt="?"))

    long = " ".join(f"w{i}" for i in range(200))
    assert worth(long) == pytest.approx(-0.02 * 40)
    assert worth("") == -2.0


def test_unrewarded_measures_do_not_move_the_utility() -> None:
    got = measures("Blue.", finish_reason="stop", reference="Blue", constraints=({"kind": "quoted"},), prompt="Colour?")
    assert set(UNREWARDED) < set(got)
    assert all(utility({**got, name: 123.0}) == utility(got) for name in UNREWARDED)
    assert all(utility({**got, name: 123.0}) != utility(got) for name in set(got) - set(UNREWARDED))
