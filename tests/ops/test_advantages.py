import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postgrad.ops.advantages import gae, group_advantages, overlong_penalty, sampler_weights

REWARDS = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
VALUES = torch.tensor([[0.5, 0.6, 0.7]], dtype=torch.float64)
ADVANTAGES = [0.46575, 0.385, 0.3]
RETURNS = [0.96575, 0.985, 1.0]
NAN = float("nan")


def test_gae_golden():
    advantages, returns = gae(REWARDS, VALUES, torch.ones(1, 3, dtype=torch.bool), gamma=1, lam=0.95)
    assert advantages[0].tolist() == pytest.approx(ADVANTAGES)
    assert returns[0].tolist() == pytest.approx(RETURNS)


def test_gae_discounts_value_and_advantage_differently():
    advantages, _ = gae(REWARDS, VALUES, torch.ones(1, 3, dtype=torch.bool), gamma=0.9, lam=0.5)
    last = 1 - 0.7
    middle = 0.9 * 0.7 - 0.6 + 0.45 * last
    assert advantages[0].tolist() == pytest.approx([0.9 * 0.6 - 0.5 + 0.45 * middle, middle, last])


def test_gae_steps_over_masked_tokens_whatever_they_hold():
    mask = torch.tensor([[False, True, False, False, True, True, False]])
    rewards = torch.tensor([[9.0, 0, 9, NAN, 0, 1, 9]], dtype=torch.float64)
    values = torch.tensor([[9.0, 0.5, NAN, 9, 0.6, 0.7, 9]], dtype=torch.float64)
    advantages, returns = gae(rewards, values, mask, gamma=1, lam=0.95)
    assert advantages[mask].tolist() == pytest.approx(ADVANTAGES)
    assert returns[mask].tolist() == pytest.approx(RETURNS)
    assert advantages[~mask].tolist() == [0] * 4
    assert returns[~mask].tolist() == [0] * 4


def test_gae_discounts_once_per_selected_token_not_per_position():
    packed = gae(REWARDS, VALUES, torch.ones(1, 3, dtype=torch.bool), gamma=0.9, lam=0.8)
    mask = torch.tensor([[True, False, True, False, True]])
    spread = [torch.zeros(1, 5, dtype=torch.float64).masked_scatter(mask, x) for x in (REWARDS, VALUES)]
    for a, b in zip(packed, gae(*spread, mask, gamma=0.9, lam=0.8), strict=True):
        torch.testing.assert_close(b[mask], a[0])


def test_gae_rows_do_not_leak_into_each_other():
    both = torch.cat([REWARDS, torch.zeros_like(REWARDS)]), torch.cat([VALUES, torch.zeros_like(VALUES)])
    advantages, _ = gae(*both, torch.ones(2, 3, dtype=torch.bool), gamma=1, lam=0.95)
    assert advantages[0].tolist() == pytest.approx(ADVANTAGES)
    assert advantages[1].tolist() == [0, 0, 0]


number = st.floats(-5, 5)


@given(st.lists(st.tuples(number, number, st.booleans()), min_size=1, max_size=12))
def test_gae_without_discount_is_return_minus_value(steps):
    rewards, values = (torch.tensor([[s[i] for s in steps]], dtype=torch.float64) for i in (0, 1))
    mask = torch.tensor([[s[2] for s in steps]])
    advantages, returns = gae(rewards, values, mask, gamma=1, lam=1)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_go * mask)
    torch.testing.assert_close(advantages, (to_go - values) * mask)


@given(st.lists(st.tuples(number, number), min_size=2, max_size=12), st.floats(0, 1))
def test_gae_with_lambda_zero_is_the_one_step_error(steps, gamma):
    rewards, values = (torch.tensor([[s[i] for s in steps]], dtype=torch.float64) for i in (0, 1))
    advantages, _ = gae(rewards, values, torch.ones_like(rewards, dtype=torch.bool), gamma=gamma, lam=0)
    following = torch.cat([values[:, 1:], torch.zeros(1, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(advantages, rewards + gamma * following - values)


EIGHT = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ("kind", "eps", "winner", "loser"),
    [
        ("grpo", 1e-4, 1.207381, -0.724429),
        ("grpo", 1e-6, 1.207612, -0.724567),
        ("dr_grpo", 1e-6, 0.625, -0.375),
        ("rloo", 1e-6, 0.714286, -0.428571),
        ("maxrl", 1e-6, 1.666662, -0.999997),
    ],
)
def test_group_advantages_golden(kind, eps, winner, loser):
    advantages = group_advantages(EIGHT, torch.zeros(8, dtype=torch.int64), kind=kind, eps=eps)
    golden = torch.where(EIGHT > 0, winner, loser)
    torch.testing.assert_close(advantages, golden, atol=1e-6, rtol=0)


KINDS = ["grpo", "dr_grpo", "rloo", "maxrl"]


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_told_apart_by_id_in_any_order_and_numbering(kind):
    rewards = torch.tensor([1.0, 0, 5, 1, 2, 0])
    mixed = group_advantages(rewards, torch.tensor([7, 7, -2, 7, -2, -2]), kind=kind)
    zeros = torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(mixed[[0, 1, 3]], group_advantages(rewards[[0, 1, 3]], zeros, kind=kind))
    torch.testing.assert_close(mixed[[2, 4, 5]], group_advantages(rewards[[2, 4, 5]], zeros, kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_one_has_no_advantage(kind):
    assert group_advantages(torch.tensor([3.0, 1, 1]), torch.tensor([0, 1, 1]), kind=kind).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reward", [0.0, 0.1, 0.7, 123.4])
def test_equal_rewards_give_no_signal_not_even_rounding(kind, reward):
    for size in (3, 7, 10):
        advantages = group_advantages(torch.full((size,), reward), torch.zeros(size, dtype=torch.int64), kind=kind)
        assert advantages.abs().max().item() < 1e-6


@given(
    st.lists(st.tuples(st.floats(0, 10, width=32), st.integers(0, 3)), min_size=1, max_size=24),
    st.sampled_from(KINDS),
)
def test_group_advantages_sum_to_zero_in_every_group(rows, kind):
    rewards = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    ids = torch.tensor([g for _, g in rows])
    advantages = group_advantages(rewards, ids, kind=kind)
    for g in ids.unique():
        assert advantages[ids == g].sum().item() == pytest.approx(0, abs=1e-7)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=9))
def test_rloo_is_the_reward_minus_the_mean_of_the_others(rewards):
    n = len(rewards)
    advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64), torch.zeros(n).long(), kind="rloo")
    others = [r - (sum(rewards) - r) / (n - 1) for r in rewards]
    assert advantages.tolist() == pytest.approx(others, abs=1e-12)


def test_maxrl_refuses_negative_rewards():
    with pytest.raises(ValueError, match="rewards >= 0"):
        group_advantages(torch.tensor([-1.0, 1.0]), torch.tensor([0, 0]), kind="maxrl")


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'gpro' is not one of"):
        group_advantages(EIGHT, torch.zeros(8, dtype=torch.int64), kind="gpro")


def test_the_overlong_penalty_falls_linearly_over_the_last_part_of_the_budget():
    lengths = torch.tensor([1, 12, 16, 17, 18, 19, 20, 25])
    penalty = overlong_penalty(lengths, max_tokens=20, buffer=4)
    assert penalty.tolist() == [0, 0, 0, -0.25, -0.5, -0.75, -1, -1]


W = torch.tensor([[0.9, 1.1, 4, 0.3]], dtype=torch.float64)


def weigh(log_w, mask=None, **bounds):
    sampler = torch.full_like(log_w, -2.0)
    mask = torch.ones_like(log_w, dtype=torch.bool) if mask is None else mask
    return sampler_weights(sampler + log_w, sampler, mask, **bounds)


def test_sampler_weights_golden():
    weights, kept = weigh(W.log(), cap=2.0, low=1.044008, high=1.044010)
    torch.testing.assert_close(weights, torch.tensor([[0.9, 1.1, 2, 0.3]], dtype=torch.float64))
    assert kept.tolist() == [True]
    for bounds in ({"low": 1.044010, "high": 2.0}, {"low": 0.5, "high": 1.044008}):
        assert weigh(W.log(), cap=2.0, **bounds)[1].tolist() == [False]


@pytest.mark.parametrize("length", [1, 92, 1000])
def test_a_small_drift_is_small_at_any_length_where_the_product_is_not(length):
    _, kept = weigh(torch.full((1, length), 0.012, dtype=torch.float64), cap=2.0, low=0.98, high=1.0121)
    assert kept.tolist() == [True]
    assert (math.exp(0.012 * length) > 3) == (length > 91)


def test_what_is_masked_has_no_say_in_weights_or_filter():
    log_w = torch.tensor([[NAN, 0.1, NAN, -0.1], [5.0, 0.0, 9.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[False, True, False, True]] * 2)
    weights, kept = weigh(log_w, mask, cap=2.0, low=0.999, high=1.001)
    torch.testing.assert_close(weights[mask], torch.tensor([0.1, -0.1, 0, 0], dtype=torch.float64).exp())
    assert weights[~mask].tolist() == [0] * 4
    assert kept.tolist() == [True, True]
    drifted = torch.tensor([[NAN, 0.3, NAN, 0.3]], dtype=torch.float64)
    assert weigh(drifted, mask[:1], cap=2.0, low=0.8, high=1.25)[1].tolist() == [False]


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_weights_never_exceed_the_cap_and_equal_policies_weigh_one(log_w):
    weights, _ = weigh(torch.tensor([log_w], dtype=torch.float64), cap=2.0, low=0.8, high=1.25)
    assert weights.max().item() <= 2.0
    assert weights.min().item() > 0
    same, kept = weigh(torch.zeros(1, len(log_w)), cap=2.0, low=0.8, high=1.25)
    assert same.tolist() == [[1.0] * len(log_w)]
    assert kept.all()
