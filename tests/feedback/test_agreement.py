from collections.abc import Sequence
from datetime import UTC, datetime

import evalica
import numpy as np
import pandas as pd
import pytest

from postgrad.feedback.agreement import (
    Grade,
    Level,
    Weighting,
    agreement_between,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    label_summary,
    raw_agreement,
    signs,
    signs_of_rewards,
    strengths,
)
from postgrad.feedback.intervals import Estimate
from postgrad.feedback.records import Judged
from postgrad.types import Comparison, Conversation, Preference


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


def table(rows: list[list[int | None]]) -> list[Grade]:
    """One row an item, one column a rater; None where it gave no grade."""
    return [
        Grade(f"q{i}", f"r{k}", value) for i, row in enumerate(rows) for k, value in enumerate(row) if value is not None
    ]


def confusion(counts: list[list[int]]) -> tuple[list[Grade], list[Grade]]:
    """Two sides of one rater each, who said `row` and `column` so many times."""
    cells = [(a, b) for a, row in enumerate(counts) for b, num in enumerate(row) for _ in range(num)]
    first = [Grade(f"q{i}", "ada", a) for i, (a, _) in enumerate(cells)]
    return first, [Grade(f"q{i}", "bob", b) for i, (_, b) in enumerate(cells)]


# Fleiss 1971, table 1: six psychiatrists' diagnoses of thirty patients.
DIAGNOSES = (
    "444444", "222555", "233335", "555555", "222444", "113333", "333355", "113334", "114444", "555555",
    "144444", "124444", "222333", "144444", "224445", "333335", "111455", "111112", "224444", "133555",
    "555555", "244444", "224555", "114444", "144445", "222224", "111155", "224444", "133333", "555555",
)  # fmt: skip
# Krippendorff 2011, section E: four observers, twelve units, seven grades missing.
RELIABILITY = (
    "11.1", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", ".555", "..11", "..3.",
)  # fmt: skip


def published(rows: Sequence[str]) -> list[Grade]:
    return table([[None if c == "." else int(c) for c in row] for row in rows])


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    assert estimate.low <= estimate.value <= estimate.high
    return estimate.value


def test_fleiss_kappa_is_that_of_his_paper() -> None:
    assert value(fleiss_kappa(published(DIAGNOSES))) == pytest.approx(0.4302445, abs=1e-7)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_krippendorff_alpha_is_that_of_his_paper(level: Level, alpha: float) -> None:
    assert value(krippendorff_alpha(published(RELIABILITY), level)) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
@pytest.mark.parametrize("seed", range(5))
def test_krippendorff_alpha_is_that_of_evalica(level: Level, seed: int) -> None:
    dice = np.random.default_rng(seed)
    rows = [
        [int(dice.integers(-3, 4) + 0.4 * i) % 7 - 3 if dice.random() < 0.7 else None for _ in range(5)]
        for i in range(40)
    ]
    expected = evalica.alpha(pd.DataFrame(rows, dtype=float).T, distance=level).alpha
    assert value(krippendorff_alpha(table(rows), level)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("weighting", "kappa"), [("unweighted", 0.4842), ("linear", 0.4701)])
def test_cohen_kappa_is_that_of_the_sas_manual(weighting: Weighting, kappa: float) -> None:
    first, second = confusion([[0, 4, 1], [0, 8, 0], [0, 1, 5]])
    assert value(cohen_kappa(first, second, weighting)) == pytest.approx(kappa, abs=5e-5)


def test_cohen_kappa_with_quadratic_weights_by_hand() -> None:
    # Observed cost (2 * 1 + 1 * 4) / 10; expected (rows 4 3 3, columns 5 3 2, over 100):
    # (4*3 + 3*5 + 3*2 + 3*3) * 1 + (4*2 + 3*5) * 4 = 42 + 92 = 134.
    first, second = confusion([[3, 1, 0], [1, 2, 0], [1, 0, 2]])
    assert value(cohen_kappa(first, second, "quadratic")) == pytest.approx(1 - 0.6 / 1.34)


def test_several_raters_of_a_side_speak_for_it_in_turn() -> None:
    people = [Grade("q", "ada", 1), Grade("q", "bob", 0), Grade("p", "ada", 1)]
    judge = [Grade("q", "judge", 1), Grade("p", "judge", 1), Grade("x", "judge", 0)]
    assert value(agreement_between(people, judge)) == pytest.approx(0.75)


def test_raw_agreement_counts_pairs_of_raters_and_first_grades_alone() -> None:
    grades = [*table([[1, 1, -1], [0, 0, None], [1, None, None]]), Grade("q2", "r0", 1), Grade("q0", "r2", 1)]
    assert value(raw_agreement(grades)) == pytest.approx(2 / 4)


def test_nothing_twice_and_one_single_grade_have_no_coefficient() -> None:
    alone, same = table([[1], [0]]), table([[1, 1], [1, 1]])
    for measure in (raw_agreement, fleiss_kappa, lambda g: krippendorff_alpha(g, "nominal")):
        assert measure(alone) is None
        assert measure([]) is None
    assert value(raw_agreement(same)) == 1
    assert fleiss_kappa(same) is None
    assert krippendorff_alpha(same, "ordinal") is None
    assert cohen_kappa(same[:2], same[:2]) is None
    assert agreement_between(alone, []) is None


def judged(preference: Preference, num_answers: int = 2) -> Judged:
    texts = tuple("abc"[:num_answers])
    asked = Comparison(preference.comparison_id, Conversation(()), texts, texts)
    return Judged(preference, asked, tuple(range(num_answers)), "p", "r", "train", "human", datetime.now(UTC))


def test_the_table_has_signs_of_pairs_and_strengths_of_two() -> None:
    given = [
        judged(Preference("c1", "ada", ((1,), (0,)), strength=3)),
        judged(Preference("c1", "bob", ((0, 1),))),
        judged(Preference("c1", "cyd", (), rationale="not my language")),
        judged(Preference("c1", "dee", ((0,), (1,)))),
        judged(Preference("c2", "ada", ((2,), (0, 1))), 3),
    ]
    assert signs(given) == [
        Grade("c1", "ada", -1, "0-1"),
        Grade("c1", "bob", 0, "0-1"),
        Grade("c1", "dee", 1, "0-1"),
        Grade("c2", "ada", 0, "0-1"),
        Grade("c2", "ada", -1, "0-2"),
        Grade("c2", "ada", -1, "1-2"),
    ]
    assert strengths(given) == [Grade("c1", "ada", -3, "0-1"), Grade("c1", "bob", 0, "0-1")]


def test_a_reward_model_is_a_rater_of_the_same_questions() -> None:
    asked = judged(Preference("c", "ada", ((0,), (1,), (2,))), 3).comparison
    assert signs_of_rewards([asked], {"a": 0.5, "b": 0.5, "c": 0.1}, rater="rm") == [
        Grade("c", "rm", 0, "0-1"),
        Grade("c", "rm", 1, "0-2"),
        Grade("c", "rm", 1, "1-2"),
    ]


def test_pairs_of_one_ranking_are_resampled_together() -> None:
    """A hundred questions of fifty pairs each that agree or disagree as one are as uncertain as a hundred pairs."""
    dice = np.random.default_rng(0)
    same = dice.random(100) < 0.5
    one, many = (
        [Grade(f"q{q}", rater, value, str(p)) for q in range(100) for p in range(num)
         for rater, value in (("ada", 1), ("bob", 1 if same[q] else -1))]
        for num in (1, 50)
    )  # fmt: skip
    assert raw_agreement(one) == raw_agreement(many)
