"""A simulated editor raises the utility that is declared, by strokes that anyone can check, and invents nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.feedback.editors import SimulatedEditor, make_editors
from postgrad.feedback.utility import measures, satisfies, utility

CAREFUL = SimulatedEditor("careful", 0.0)


def edited(text, *constraints, finish_reason="stop", reference=None, editor=CAREFUL, sample="s"):
    return editor.edit(
        sample, text, finish_reason=finish_reason, prompt="Why?", reference=reference, constraints=constraints
    )


def worth(text, *constraints, finish_reason="stop", reference=None):
    return utility(
        measures(text, finish_reason=finish_reason, reference=reference, constraints=constraints, prompt="Why?")
    )


@pytest.mark.parametrize(
    ("text", "finish_reason", "expected"),
    [
        ("The sea is salt. It has been so for as long as anybody can", "length", "The sea is salt."),
        ("Because the sea is salt and very", "length", "Because the sea is salt and very."),
        ("It is so. It is so. It is so.", "stop", "It is so."),
        ("Paris.", "stop", "Paris."),
        ("", "stop", ""),
    ],
)
def test_what_is_unfinished_or_repeated_is_cut_or_finished(text, finish_reason, expected):
    assert edited(text, finish_reason=finish_reason) == expected


CONSTRAINTS = [
    {"kind": "max_words", "value": 4},
    {"kind": "one_sentence"},
    {"kind": "lowercase"},
    {"kind": "starts_with", "value": "Well,"},
    {"kind": "ends_with", "value": "That is all."},
]


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda c: c["kind"])
def test_a_constraint_is_obeyed(constraint):
    text = "The sea is salt, as everybody knows. Rivers bring it there"
    assert not satisfies(constraint, text)
    found = edited(text, constraint, finish_reason="length")
    assert satisfies(constraint, found), found


def test_what_the_reference_holds_is_not_cut_and_what_it_holds_is_not_written_in():
    text = "There are many answers to that. Rivers wash minerals from rocks. They are of"
    kept = edited(text, finish_reason="length", reference="Rivers wash minerals from rocks")
    assert "Rivers wash minerals from rocks" in kept
    assert "Paris" not in edited("It is London.", reference="Paris")


def test_a_careless_editor_leaves_answers_alone_and_a_pool_is_reproducible():
    text = "It is so. It is so."
    assert edited(text, editor=SimulatedEditor("x", 1.0)) == text
    careless = SimulatedEditor("x", 0.5)
    left = sum(edited(text, editor=careless, sample=f"s{i}") == text for i in range(200))
    assert 70 < left < 130
    assert make_editors(3, seed=1, carelessness=0.1) == make_editors(3, seed=1, carelessness=0.1)
    assert all(0 <= editor.carelessness <= 0.2 for editor in make_editors(50, seed=1, carelessness=0.1))


TEXTS = st.lists(
    st.sampled_from(["the sea", "is salt.", "Well,", "It is so.", "why?", "Rivers", ",", "a b c d e f g h", "\n"]),
    max_size=12,
).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.lists(st.sampled_from(CONSTRAINTS), max_size=2), st.sampled_from(["stop", "length"]))
def test_no_edit_is_worse_than_its_original(text, constraints, finish_reason):
    found = edited(text, *constraints, finish_reason=finish_reason, reference="Rivers")
    before = worth(text, *constraints, finish_reason=finish_reason, reference="Rivers")
    assert worth(found, *constraints, reference="Rivers") >= before
    assert edited(found, *constraints, reference="Rivers") == found, "nothing is left to mend"
