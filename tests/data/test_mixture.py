import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.data import Mixture, split_of
from postgrad.errors import ConfigError, DataError
from postgrad.types import Conversation, Example, Message


def examples(prefix: str, n: int) -> list[Example]:
    return [Example(f"{prefix}{i}", Conversation((Message("user", str(i)),))) for i in range(n)]


def drawn(mixture: Mixture, steps: range, n: int) -> list[str]:
    return [example.id for step in steps for example in mixture.take(step, n)]


def test_sources_are_interleaved_by_weight_in_a_fixed_pattern() -> None:
    mixture = Mixture([(examples("a", 50), 2), (examples("b", 50), 1)])
    assert "".join(name[0] for name in drawn(mixture, range(3), 4)) == "abaabaabaaba"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(1, 600))
def test_no_source_is_ever_a_whole_draw_away_from_its_share(weights: list[int], n: int) -> None:
    mixture = Mixture([(examples(f"{s}-", 7), weight) for s, weight in enumerate(weights)])
    counts = Counter(name.split("-")[0] for name in drawn(mixture, range(1), n))
    for s, weight in enumerate(weights):
        assert abs(counts[str(s)] - n * weight / sum(weights)) < len(weights)


def test_every_epoch_has_each_example_once_in_another_order() -> None:
    mixture = Mixture([(examples("a", 12), 1.0)])
    first, second = drawn(mixture, range(3), 4), drawn(mixture, range(3, 6), 4)
    assert sorted(first) == sorted(second) == sorted(e.id for e in examples("a", 12))
    assert first != second
    assert first != sorted(first)


def test_every_epoch_of_a_mixed_in_source_has_each_example_once() -> None:
    names = drawn(Mixture([(examples("a", 7), 0.7), (examples("b", 5), 0.3)]), range(100), 50)
    for prefix, size in [("a", 7), ("b", 5)]:
        own = [name for name in names if name[0] == prefix]
        epochs = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 100
        assert all(len(set(epoch)) == size for epoch in epochs)


@given(st.permutations(range(8)))
@settings(max_examples=20, deadline=None)
def test_a_step_depends_on_its_number_alone(order: list[int]) -> None:
    sources = [(examples("a", 5), 3), (examples("b", 4), 1)]
    straight = [Mixture(sources, seed=3).take(step, 6) for step in range(8)]
    mixture = Mixture(sources, seed=3)
    assert {step: mixture.take(step, 6) for step in order} == dict(enumerate(straight))


def test_the_order_is_the_same_on_every_machine_and_changes_with_the_seed() -> None:
    source = [(examples("a", 8), 1.0)]
    order = ["a6", "a7", "a3", "a1", "a0", "a2", "a5", "a4"]
    assert drawn(Mixture(source, seed=0), range(1), 8) == order
    assert drawn(Mixture(source, seed=1), range(1), 8) != order


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_a_weight_that_is_not_positive_is_named(weight: float) -> None:
    with pytest.raises(ConfigError, match=f"weight {weight} of data set 2 in the mixture must be positive"):
        Mixture([(examples("a", 1), 1), (examples("b", 1), weight)])


def test_a_weight_too_small_to_be_drawn_is_named() -> None:
    with pytest.raises(ConfigError, match=r"weight 0.0001 of data set 2 in the mixture is below 1/1000"):
        Mixture([(examples("a", 1), 1), (examples("b", 1), 0.0001)])


def test_an_empty_mixture_or_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="needs at least one data set"):
        Mixture([])
    with pytest.raises(DataError, match="data set 2 of the mixture is empty"):
        Mixture([(examples("a", 1), 1), ([], 1)])


SHARES = {"sft": 0.5, "rl": 0.3, "heldout": 0.2}


def test_a_split_is_the_sha256_of_the_normalised_prompt() -> None:
    # `printf 's\nhello world' | sha256sum` starts with b5536ed0, which is .708 of 2**32
    assert split_of("hello world", SHARES, "s") == "rl"
    assert split_of("hello world", {"low": 0.7083, "high": 0.2917}, "s") == "high"
    assert split_of("hello world", {"low": 0.7084, "high": 0.2916}, "s") == "low"


@pytest.mark.parametrize("copy", ["hello world", "  Hello\n\tWORLD ", "hello\u00a0world", "\uff48ello world"])
def test_near_copies_of_a_prompt_share_its_split(copy: str) -> None:
    for salt in map(str, range(20)):
        assert split_of(copy, SHARES, salt) == split_of("hello world", SHARES, salt)


def test_splits_have_their_shares_and_salts_are_independent() -> None:
    prompts = [f"prompt {i}" for i in range(6000)]
    one, two = ([split_of(p, SHARES, salt) for p in prompts] for salt in ("one", "two"))
    for name, share in SHARES.items():
        spread = 4 * math.sqrt(share * (1 - share) * 6000)
        assert abs(one.count(name) - share * 6000) < spread
    same = sum(a == b for a, b in zip(one, two, strict=True))
    agreement = sum(share**2 for share in SHARES.values())
    assert abs(same - agreement * 6000) < 4 * math.sqrt(agreement * (1 - agreement) * 6000)


def test_a_share_of_zero_is_never_chosen_and_one_always() -> None:
    chosen = {split_of(str(i), {"none": 0.0, "all": 1.0, "last": 0.0}, "") for i in range(500)}
    assert chosen == {"all"}


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": math.nan}])
def test_shares_that_are_no_partition_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be non-negative and sum to 1"):
        split_of("x", shares, "")


def test_reading_and_mixing_data_needs_no_torch() -> None:
    code = "import sys, postgrad.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False).returncode == 0
