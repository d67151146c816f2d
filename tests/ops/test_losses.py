import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.ops.losses import (
    bradley_terry_loss,
    dpo_loss,
    kto_loss,
    nll_loss,
    orpo_loss,
    policy_loss,
    simpo_loss,
    step_loss,
    value_loss,
)

NAN = float("nan")
KINDS = ["ppo", "gspo", "cispo", "reinforce"]


def tensor(*rows, grad=False):
    return torch.tensor(rows, dtype=torch.float64, requires_grad=grad)


def one_token(ratio, advantage, **kwargs):
    """Loss and d loss / d logprob of a single token."""
    old = tensor([-2.0])
    new = (old + math.log(ratio)).requires_grad_()
    total, count, metrics = policy_loss(new, old, tensor([advantage]), torch.ones(1, 1, dtype=torch.bool), **kwargs)
    assert count == 1
    total.backward()
    assert new.grad is not None
    return total.item(), new.grad.item(), metrics


@pytest.mark.parametrize("kind", ["ppo", "gspo"])
@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "clipped"),
    [
        (1, 0.5, -0.5, False),
        (1, 1.25, -1.2, True),
        (1, 3.5, -1.2, True),
        (-1, 0.5, 0.8, True),
        (-1, 1.25, 1.25, False),
        (-1, 3.5, 3.5, False),
    ],
)
def test_the_clip_golden(kind, advantage, ratio, loss, clipped):
    value, gradient, metrics = one_token(ratio, advantage, clip_eps=0.2, kind=kind)
    assert value == pytest.approx(loss)
    assert gradient == pytest.approx(0 if clipped else loss)
    assert metrics["policy/clip_frac"] == clipped


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "clipped"),
    [(-1, 3.5, 3.0, True), (-2, 3.5, 6.0, True), (-1, 2.9, 2.9, False), (-1, 0.5, 0.8, True), (1, 3.5, -1.2, True)],
)
def test_the_dual_clip_bounds_only_bad_actions_that_became_likelier(advantage, ratio, loss, clipped):
    value, gradient, metrics = one_token(ratio, advantage, clip_eps=0.2, dual_clip=3.0)
    assert value == pytest.approx(loss)
    assert gradient == pytest.approx(0 if clipped else loss)
    assert metrics["policy/clip_frac"] == clipped


def test_a_dual_clip_of_one_is_refused():
    with pytest.raises(AssertionError, match="dual clip"):
        one_token(1.0, 1.0, clip_eps=0.2, dual_clip=1.0)


def test_the_upper_clip_may_be_wider_than_the_lower():
    assert one_token(1.25, 1, clip_eps=0.2, clip_eps_high=0.28)[0] == pytest.approx(-1.25)
    assert one_token(1.5, 1, clip_eps=0.2, clip_eps_high=0.28)[0] == pytest.approx(-1.28)
    assert one_token(0.5, -1, clip_eps=0.2, clip_eps_high=0.28)[0] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "truncated"), [(0.1, 1, 0.1, 0), (1.2, -1, 1.2, 0), (3.5, 2, 1.3, 1)]
)
def test_cispo_truncates_the_weight_above_and_keeps_the_gradient(ratio, advantage, weight, truncated):
    loss, gradient, metrics = one_token(ratio, advantage, clip_eps=0.2, clip_eps_high=0.3, kind="cispo")
    assert gradient == pytest.approx(-weight * advantage)
    assert loss == pytest.approx(-weight * advantage * (-2 + math.log(ratio)))
    assert metrics["policy/clip_frac"] == truncated


def test_reinforce_ignores_the_ratio():
    loss, gradient, metrics = one_token(3.5, 2.0, clip_eps=0.2, kind="reinforce")
    assert (loss, gradient) == pytest.approx((-2 * (-2 + math.log(3.5)), -2))
    assert metrics["policy/clip_frac"] == 0


ADVANTAGES = tensor([1, 1, NAN, NAN], [-1, -1, -1, -1])
TWO_AND_FOUR = torch.tensor([[True, True, False, False], [True] * 4])


def test_on_policy_ppo_sums_minus_the_advantages_over_tokens():
    logprobs = tensor([-1, -2, NAN, NAN], [-1, -2, -3, -4])
    total, count, _ = policy_loss(logprobs, logprobs, ADVANTAGES, TWO_AND_FOUR, clip_eps=0.2)
    assert (total.item(), count) == (2.0, 6)
    assert total.item() / count == pytest.approx(0.333333, abs=1e-6)


def test_gspo_counts_sequences_and_weighs_short_and_long_alike():
    logprobs = tensor([-1, -2, NAN, NAN], [-1, -2, -3, -4], [NAN] * 4)
    mask = torch.cat([TWO_AND_FOUR, torch.zeros(1, 4, dtype=torch.bool)])
    advantages = torch.cat([ADVANTAGES, tensor([NAN] * 4)])
    total, count, metrics = policy_loss(logprobs, logprobs, advantages, mask, clip_eps=0.2, kind="gspo")
    assert (total.item(), count) == (0.0, 2)
    assert metrics["policy/ratio_mean"] == 2


@pytest.mark.parametrize(("reduction", "mean"), [("sequence", 0.0), ("token", 1 / 3), (4, 0.25)])
@pytest.mark.parametrize("kind", ["ppo", "cispo", "reinforce"])
def test_reductions_of_the_policy_loss_golden(kind, reduction, mean):
    logprobs = -torch.ones(2, 4, dtype=torch.float64)
    sign = 1 if kind == "ppo" else -1  # theirs multiplies the logprob of minus one, not the ratio
    total, count, metrics = policy_loss(
        logprobs, logprobs, ADVANTAGES, TWO_AND_FOUR, clip_eps=0.2, kind=kind, reduction=reduction
    )
    assert total.item() / count == pytest.approx(sign * mean)
    assert metrics["policy/ratio_mean"] == count


def test_under_a_budget_metrics_stay_means_over_tokens_and_the_loss_is_its_own():
    old = tensor([-1, -1, NAN, NAN], [-1, -1, -1, -1])
    new = old + tensor([math.log(2), 0, 0, 0], [0, 0, 0, 0])
    total, count, metrics = policy_loss(new, old, ADVANTAGES, TWO_AND_FOUR, clip_eps=0.2, reduction=100)
    assert count == 2
    assert total.item() == pytest.approx((-1.2 - 1 + 4) / 100)
    assert metrics["policy/ratio_mean"] / count == pytest.approx((1.5 + 1) / 2)
    assert metrics["policy/clip_frac"] / count == pytest.approx(0.25)


def test_gspo_has_no_reduction_but_its_own():
    with pytest.raises(AssertionError, match="one ratio a sequence"):
        policy_loss(ADVANTAGES, ADVANTAGES, ADVANTAGES, TWO_AND_FOUR, clip_eps=0.2, kind="gspo", reduction="token")


def test_gspo_clips_the_geometric_mean_of_a_sequence_not_its_tokens():
    old = tensor([-1, -1, -9, -1])
    mask = torch.tensor([[True, True, False, True]])
    log_ratio = tensor([1.0, -0.9, 7.0, 0.05])
    new = (old + log_ratio).requires_grad_()
    total, count, metrics = policy_loss(new, old, tensor([2.0, 2, 2, 2]), mask, clip_eps=0.1, kind="gspo")
    total.backward()
    assert total.item() == pytest.approx(-2 * math.exp(0.05))
    assert new.grad is not None
    assert new.grad[0].tolist() == pytest.approx([-2 * math.exp(0.05) / 3] * 2 + [0, -2 * math.exp(0.05) / 3])
    k3 = [math.exp(x) - 1 - x for x in (1.0, -0.9, 0.05)]
    assert (count, metrics["policy/clip_frac"]) == (1, 0)
    assert metrics["policy/kl_old"] == pytest.approx(sum(k3) / 3)


def test_policy_metrics_are_sums_over_selected_tokens():
    old = tensor([-1.0, -1, -1, NAN])
    new = old + tensor([0.5, -0.5, 0.0, 0])
    mask = torch.tensor([[True, True, True, False]])
    total, count, metrics = policy_loss(new, old, tensor([1, 1, 1, NAN]), mask, clip_eps=0.2)
    assert count == 3
    assert metrics == pytest.approx(
        {
            "loss/policy": total.item(),
            "policy/clip_frac": 1,
            "policy/kl_old": math.exp(0.5) - 1.5 + math.exp(-0.5) - 0.5,
            "policy/ratio_mean": math.exp(0.5) + math.exp(-0.5) + 1,
        }
    )


def test_kl_old_estimates_the_divergence_from_the_sampling_policy():
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    per_token = [
        policy_loss(q[i].log()[None], p[i].log()[None], tensor(1.0), torch.tensor([True]), clip_eps=0.2)[2]
        for i in range(3)
    ]
    expected = sum(p[i].item() * m["policy/kl_old"] for i, m in enumerate(per_token))
    assert expected == pytest.approx(0.2238046572)


def bandit_gradient(kind, advantages):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 5, generator=g, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(5, (2, 4, 1), generator=g)
    logprobs = logits.log_softmax(-1).gather(-1, tokens)[..., 0]
    total, _, _ = policy_loss(logprobs, logprobs.detach(), advantages, TWO_AND_FOUR, clip_eps=0.2, kind=kind)
    (gradient,) = torch.autograd.grad(total, logits)
    return gradient


@pytest.mark.parametrize("kind", ["ppo", "cispo"])
def test_on_policy_the_gradient_is_that_of_reinforce(kind):
    advantages = tensor([0.3, -1.2, NAN, NAN], [2.0, 0.0, -0.1, 5.0])
    reinforce = bandit_gradient("reinforce", advantages)
    assert reinforce.abs().max().item() > 1
    torch.testing.assert_close(bandit_gradient(kind, advantages), reinforce)


def test_on_policy_gspo_is_reinforce_averaged_within_each_sequence():
    lengths = TWO_AND_FOUR.sum(-1)[:, None, None]
    torch.testing.assert_close(bandit_gradient("gspo", ADVANTAGES), bandit_gradient("reinforce", ADVANTAGES) / lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_old_logprobs_and_advantages_are_constants_of_the_policy_loss(kind):
    logprobs = tensor([-1.0, -2], grad=True)
    mask = torch.tensor([[True, False]])
    total, _, _ = policy_loss(logprobs, tensor([-1.1, NAN]), tensor([1.0, NAN]), mask, clip_eps=0.2, kind=kind)
    total.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0, 1].item() == 0
    assert logprobs.grad[0, 0].item() < 0


def test_unknown_policy_loss_is_refused():
    with pytest.raises(ValueError, match="'trpo' is not one of"):
        one_token(1.0, 1.0, clip_eps=0.2, kind="trpo")


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient", "clipped"),
    [
        (1.1, 3.0, 0.5 * 1.9**2, -1.9, 0),  # inside the clip
        (2.0, 3.0, 0.5 * 1.8**2, 0.0, 1),  # moved too far towards the return: the clip holds it back
        (2.0, 0.0, 0.5 * 2.0**2, 2.0, 0),  # moved away: the plain error pulls it back
        (0.0, -1.0, 0.5 * 1.8**2, 0.0, 1),
    ],
)
def test_value_loss_takes_the_larger_of_two_squared_errors(value, target, loss, gradient, clipped):
    values = tensor([value, NAN], grad=True)
    mask = torch.tensor([[True, False]])
    total, count, metrics = value_loss(values, tensor([1.0, NAN]), tensor([target, NAN]), mask, value_clip=0.2)
    total.backward()
    assert values.grad is not None
    assert (total.item(), count) == (pytest.approx(loss), 1)
    assert values.grad[0].tolist() == pytest.approx([gradient, 0])
    assert metrics == pytest.approx({"loss/value": loss, "value/clip_frac": clipped})


def test_value_loss_without_clip_is_half_the_squared_error():
    total, count, metrics = value_loss(
        tensor([3.0, 5.0]), tensor([0.0, 0.0]), tensor([1.0, 1.0]), torch.ones(1, 2, dtype=torch.bool), value_clip=None
    )
    assert (total.item(), count, metrics["value/clip_frac"]) == (10.0, 2, 0)


@pytest.mark.parametrize(("gap", "loss"), [(0, 0.693147), (1, 0.313262), (2, 0.126928)])
def test_bradley_terry_golden(gap, loss):
    total, count, _ = bradley_terry_loss(tensor(5.0 + gap), tensor(5.0))
    assert (total.item(), count) == (pytest.approx(loss, abs=1e-6), 1)


def test_bradley_terry_margin_raises_the_bar():
    assert bradley_terry_loss(tensor(3.0), tensor(0.0), margin=tensor(1.0))[0].item() == pytest.approx(
        0.126928, abs=1e-6
    )


def test_a_tie_is_a_label_of_one_half_and_pulls_scores_together_whatever_the_margin():
    chosen = tensor(2.0, grad=True)
    total, count, _ = bradley_terry_loss(chosen, tensor(0.0), margin=tensor(9.0), tie=torch.tensor([True]))
    total.backward()
    assert (total.item(), count) == (pytest.approx((0.126928 + 2.126928) / 2, abs=1e-6), 1)
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(1 / (1 + math.exp(-2)) - 0.5)
    even = bradley_terry_loss(tensor(1.0), tensor(1.0), tie=torch.tensor([True]))[0]
    assert even.item() == pytest.approx(math.log(2))


def test_bradley_terry_weighs_pairs_and_asks_accuracy_of_decided_ones_only():
    chosen, rejected = tensor(1.0, 0.0, 7.0, 3.0), tensor(0.0, 1.0, 0.0, 3.0)
    weight, tie = tensor(2.0, 3.0, 0.5, 1.0), torch.tensor([False, False, True, False])
    total, count, metrics = bradley_terry_loss(chosen, rejected, weight=weight, tie=tie)
    tied = (math.log1p(math.exp(-7)) + math.log1p(math.exp(7))) / 2
    assert count == 6.5
    assert total.item() == pytest.approx(2 * 0.313262 + 3 * 1.313262 + 0.5 * tied + math.log(2), abs=1e-5)
    assert metrics == pytest.approx({"loss/bradley_terry": total.item(), "reward/correct": 2.5, "reward/decided": 6})


def test_bradley_terry_of_far_apart_scores_neither_overflows_nor_vanishes():
    chosen = torch.tensor([-500.0], requires_grad=True)
    total, _, _ = bradley_terry_loss(chosen, torch.tensor([500.0]))
    total.backward()
    assert total.item() == 1000
    assert chosen.grad is not None
    assert chosen.grad.item() == -1


def pair_with_gap(gap):
    return tensor(-10.0 + gap), tensor(-12.0), tensor(-11.0), tensor(-13.0)


@pytest.mark.parametrize(("kind", "loss"), [("sigmoid", 0.598139), ("ipo", 9.0)])
def test_dpo_golden(kind, loss):
    total, count, metrics = dpo_loss(*pair_with_gap(2.0), beta=0.1, kind=kind)
    assert (total.item(), count) == (pytest.approx(loss, abs=1e-6), 1)
    assert metrics == pytest.approx(
        {
            "loss/preference": total.item(),
            "preference/accuracy": 1,
            "preference/margin": 0.2,
            "preference/chosen_reward": 0.3,
            "preference/rejected_reward": 0.1,
        },
        abs=1e-9,
    )


def test_dpo_gradient_raises_the_chosen_and_lowers_the_rejected():
    chosen, rejected = tensor(-10.0, grad=True), tensor(-12.0, grad=True)
    dpo_loss(chosen, rejected, tensor(-12.0), tensor(-12.0), beta=0.1)[0].backward()
    pull = 0.1 / (1 + math.exp(0.2))
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-pull, pull))


def test_label_smoothing_mixes_in_the_flipped_label():
    total, _, _ = dpo_loss(*pair_with_gap(2.0), beta=0.1, label_smoothing=0.25)
    assert total.item() == pytest.approx(0.75 * 0.598139 + 0.25 * 0.798139, abs=1e-6)


def test_a_smoothed_loss_is_least_where_sigma_is_the_share_of_right_labels():
    gap = tensor(math.log(3) / 0.1, grad=True)
    dpo_loss(gap, tensor(0.0), tensor(0.0), tensor(0.0), beta=0.1, label_smoothing=0.25)[0].backward()
    assert gap.grad is not None
    assert gap.grad.item() == pytest.approx(0, abs=1e-12)


def test_dpo_counts_wrong_and_undecided_pairs():
    chosen = tensor(1.0, -1.0, 0.0)
    _, count, metrics = dpo_loss(chosen, *([torch.zeros_like(chosen)] * 3), beta=0.5)
    assert (count, metrics["preference/accuracy"], metrics["preference/margin"]) == (3, 1.5, 0)


def test_dpo_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="label_smoothing belongs to the sigmoid"):
        dpo_loss(*pair_with_gap(1.0), beta=0.1, kind="ipo", label_smoothing=0.1)
    with pytest.raises(ValueError, match="'hinge' is not one of"):
        dpo_loss(*pair_with_gap(1.0), beta=0.1, kind="hinge")


def test_nll_sums_selected_tokens():
    total, count, metrics = nll_loss(tensor([-1.0, -2.0, NAN]), torch.tensor([[True, True, False]]))
    assert (total.item(), count, metrics) == (3.0, 2, {"loss/nll": 3.0})


def test_nll_weights_count_in_the_sum_and_in_the_count():
    mask = torch.tensor([[True, True, False]])
    logprobs = tensor([-1.0, -2.0, NAN], grad=True)
    total, count, _ = nll_loss(logprobs, mask, tensor([0.5, 3.0, NAN]))
    total.backward()
    assert (total.item(), count) == (6.5, 3.5)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == [-0.5, -3, 0]


def softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


@pytest.mark.parametrize("seed", range(3))
def test_preference_losses_are_those_of_the_papers_to_the_sixth_digit(seed):
    g = torch.Generator().manual_seed(seed)
    rows = (torch.randn(4, 12, generator=g, dtype=torch.float64) * 3).tolist()
    chosen, rejected, ref_chosen, ref_rejected = rows
    gaps = [(a - c) - (b - d) for a, b, c, d in zip(*rows, strict=True)]
    tensors = [tensor(*row) for row in rows]
    beta, flipped = 0.2, 0.1
    wanted = {
        "sigmoid": sum((1 - flipped) * softplus(-beta * x) + flipped * softplus(beta * x) for x in gaps),
        "ipo": sum((x - 1 / (2 * beta)) ** 2 for x in gaps),
    }
    smoothed, _, _ = dpo_loss(*tensors, beta=beta, label_smoothing=flipped)
    assert smoothed.item() == pytest.approx(wanted["sigmoid"], abs=1e-6)
    assert dpo_loss(*tensors, beta=beta, kind="ipo")[0].item() == pytest.approx(wanted["ipo"], abs=1e-6)

    weights, margins = [abs(x) for x in ref_chosen], [abs(x) for x in ref_rejected]
    ties = [x > 0 for x in ref_rejected]
    expected = 0.0
    for c, r, w, m, tie in zip(chosen, rejected, weights, margins, ties, strict=True):
        expected += w * ((softplus(r - c) + softplus(c - r)) / 2 if tie else softplus(m - (c - r)))
    total, count, _ = bradley_terry_loss(
        *tensors[:2], weight=tensor(*weights), margin=tensor(*margins), tie=torch.tensor(ties)
    )
    assert total.item() == pytest.approx(expected, abs=1e-6)
    assert count == pytest.approx(sum(weights))


def losses(x, y, z, mask):
    """Every loss on [B, T] inputs; pairs are the positions of [B, T], flattened."""
    flat = [t.flatten() for t in (x, y, z)]
    yield from (policy_loss(x, y, z, mask, clip_eps=0.2, dual_clip=3.0, kind=kind) for kind in KINDS)
    yield from (policy_loss(x, y, z, mask, clip_eps=0.2, reduction=reduction) for reduction in ("sequence", 6))
    yield value_loss(x, y, z, mask, value_clip=0.3)
    yield nll_loss(x, mask)
    yield nll_loss(x, mask, z.abs())
    yield bradley_terry_loss(flat[0], flat[1], weight=flat[2].abs(), tie=mask.flatten(), margin=flat[2])
    yield dpo_loss(*flat, flat[1] * 0.5, beta=0.3, label_smoothing=0.1)
    yield dpo_loss(*flat, flat[1] * 0.5, beta=0.3, kind="ipo", weight=flat[2].abs())
    yield kto_loss(flat[0], mask.flatten(), kl=0.4, beta=0.3, bad_weight=2.0, weight=flat[2].abs())
    yield orpo_loss(-flat[0].abs(), -flat[1].abs(), beta=0.3, weight=flat[2].abs())
    yield simpo_loss(flat[0], flat[1], beta=0.3, gamma=0.2, weight=flat[2].abs())


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 3))
def test_every_loss_of_a_batch_is_the_sum_of_its_parts_and_blind_to_padding(seed, cut, padding):
    g = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(5, 6, generator=g, dtype=torch.float64) for _ in range(3)]
    mask = torch.rand(5, 6, generator=g) > 0.4
    parts = [losses(*(t[part] for t in tensors), mask[part]) for part in (slice(None, cut), slice(cut, None))]
    for (total, count, metrics), first, second in zip(losses(*tensors, mask), *parts, strict=True):
        assert total.item() == pytest.approx(first[0].item() + second[0].item(), abs=1e-9)
        assert count == pytest.approx(first[1] + second[1])
        assert metrics == pytest.approx({k: first[2][k] + second[2][k] for k in metrics}, abs=1e-9)
    padded = [torch.nn.functional.pad(t, (padding, 0), value=NAN) for t in tensors]
    masked_losses = list(losses(*padded, torch.nn.functional.pad(mask, (padding, 0))))[:9]
    for (total, count, metrics), other in zip(losses(*tensors, mask), masked_losses, strict=False):
        assert (total.item(), count) == (pytest.approx(other[0].item(), abs=1e-9), pytest.approx(other[1]))
        assert metrics == pytest.approx(other[2], abs=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_and_smoothed_labels_are_a_cross_entropy(smoothing):
    gaps, labels, margins = [1.5, -0.5, 3.0, 0.2], [1.0, 0.7, 0.95, 0.5], [0.0, 1.0, 0.5, 9.0]
    ties, weights = [False, False, False, True], [1.0, 2.0, 0.5, 3.0]
    expected = 0.0
    for gap, label, margin, tie, weight in zip(gaps, labels, margins, ties, weights, strict=True):
        chance = 0.5 if tie else (1 - smoothing) * label + smoothing * (1 - label)
        z = gap - (0 if tie else margin)
        p = 1 / (1 + math.exp(-z))
        expected -= weight * (chance * math.log(p) + (1 - chance) * math.log(1 - p))
    total, count, metrics = bradley_terry_loss(
        tensor(*gaps), tensor(0.0, 0.0, 0.0, 0.0), margin=tensor(*margins), weight=tensor(*weights),
        tie=torch.tensor(ties), label=tensor(*labels), label_smoothing=smoothing,
    )  # fmt: skip
    assert total.item() == pytest.approx(expected, abs=1e-12)
    assert (count, metrics["reward/correct"], metrics["reward/decided"]) == (6.5, 1.5, 3.5)


def test_a_smoothed_label_wants_no_infinite_gap():
    chosen = tensor(math.log(9), grad=True)
    bradley_terry_loss(chosen, tensor(0.0), label_smoothing=0.1)[0].backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(0, abs=1e-12)


def test_steps_are_a_weighted_cross_entropy():
    total, count, metrics = step_loss(tensor(2.0, -1.0, 0.5), tensor(1.0, 0.0, 0.0), tensor(1.0, 2.0, 0.5))
    expected = math.log1p(math.exp(-2)) + 2 * math.log1p(math.exp(-1)) + 0.5 * math.log1p(math.exp(0.5))
    assert total.item() == pytest.approx(expected, abs=1e-12)
    assert (count, metrics["reward/correct"], metrics["reward/decided"]) == (3.5, 3.0, 3.5)
