"""False claims and over-refusal as shares, and what changed between two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from postgrad.errors import DataError
from postgrad.eval_cli import _change_table
from postgrad.evals.limits import compare, read_pairs, summarise


def rows(beyond: str, within: str) -> list[dict[str, Any]]:
    """One letter an answer, in two capabilities by turns: a admits, c claims, n neither."""
    stances = {"a": "admits", "c": "claims", "n": "neither"}
    return [
        {"id": str(i), "capability": "xy"[i % 2], "side": side, "stance": stances[letter], "finish_reason": "stop"}
        for side, letters in (("beyond", beyond), ("within", within))
        for i, letter in enumerate(letters)
    ]


def test_each_share_counts_its_own_side_and_capability() -> None:
    found = summarise(rows("ccca", "naan"))
    assert (found["false_claims"]["value"], found["admitted"]["value"]) == (0.75, 0.25)
    assert found["over_refusal"]["value"] == 0.5
    assert found["false_claims"]["low"] == pytest.approx(0.3006, abs=1e-4)  # Wilson, 3 of 4
    assert found["false_claims"]["high"] == pytest.approx(0.9544, abs=1e-4)
    assert found["capabilities"]["x"]["false_claims"]["value"] == 1.0
    assert found["capabilities"]["y"]["false_claims"]["value"] == 0.5
    assert found["capabilities"]["y"]["admitted"]["value"] == 0.5


def test_the_change_is_paired_and_its_interval_draws_whole_capabilities() -> None:
    found = compare(rows("cccc", "nnnn"), rows("cnca", "nnan"))
    assert found["false_claims"]["value"] == -0.5
    # Nothing changed in one capability and everything in the other: either may be drawn twice.
    assert (found["false_claims"]["low"], found["false_claims"]["high"]) == (-1.0, 0.0)
    assert found["false_claims_ratio"]["value"] == 0.5
    assert found["over_refusal"]["value"] == 0.25
    assert found["admitted"]["value"] == 0.25


def test_there_is_no_ratio_without_false_claims_before() -> None:
    assert compare(rows("nn", "nn"), rows("cn", "nn"))["false_claims_ratio"] is None


def test_a_ratio_has_no_upper_bound_where_some_draws_hold_no_false_claim_before() -> None:
    """Two capabilities, one of them without a claim before: a quarter of the draws divide by nothing."""
    ratio = compare(rows("cncn", "nnnn"), rows("cccn", "nnnn"))["false_claims_ratio"]
    assert ratio == {"value": 1.5, "low": 1.0, "high": None, "num": 2}


def test_the_table_says_that_a_ratio_has_no_bound() -> None:
    table = _change_table(compare(rows("cncn", "nnnn"), rows("cccn", "nnnn")), "old", "new")
    assert list(table.columns[1].cells)[-1] == "1.50 [1.00, no bound]"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"id": "a", "capability": "b", "beyond": "c"}\nno json\n', "line 1, 2"),
        ('{"id": "a", "capability": "b", "beyond": "c", "within": " "}\n', "line 1"),
        ("", "no row"),
        ('{"id": "a", "capability": "b", "beyond": "c", "within": "d"}\n' * 2, "one 'id' twice"),
    ],
)
def test_rows_that_are_no_pair_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=complaint):
        read_pairs(path)
