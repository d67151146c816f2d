import pytest

from postgrad.feedback.agreement import label_summary
from postgrad.types import Preference


def test_agreement_is_the_share_of_rater_pairs_with_the_same_answer() -> None:
    given = [
        Preference("c1", "ada", ((0,), (1,))),
        Preference("c1", "bob", ((0,), (1,)), strength=3),
        Preference("c1", "eve", ((1,), (0,))),
        Preference("c2", "ada", ((0, 1),)),
        Preference("c2", "bob", ((1, 0),)),
        Preference("c3", "ada", ((0,), (1,))),
    ]
    # c1 gives one agreeing pair of three, c2 one of one, c3 none.
    assert label_summary(given) == {
        "num_comparisons": 3,
        "num_preferences": 6,
        "tie_frac": pytest.approx(1 / 3),
        "rater_agreement": pytest.approx(2 / 4),
    }


def test_a_rater_does_not_agree_with_itself_and_nothing_gives_none() -> None:
    twice = [Preference("c", "ada", ((0,), (1,))), Preference("c", "ada", ((0,), (1,)))]
    assert label_summary(twice)["rater_agreement"] is None
    assert label_summary([])["tie_frac"] is None
