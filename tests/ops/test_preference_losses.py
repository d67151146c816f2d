import math

import pytest
import torch

from postgrad.ops.losses import dpo_loss, kto_loss, orpo_loss, simpo_loss


def tensor(*values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def softplus(x):
    return math.log1p(math.exp(x))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("seed", range(3))
def test_kto_orpo_and_simpo_are_those_of_their_papers_to_the_ninth_digit(seed):
    g = torch.Generator().manual_seed(seed)
    ratios, kl, beta = (torch.randn(20, generator=g, dtype=torch.float64) * 4).tolist(), 1.3, 0.2
    good = torch.rand(20, generator=g) > 0.4
    weights = torch.rand(20, generator=g, dtype=torch.float64).tolist()
    expected = 0.0
    for r, desirable, w in zip(ratios, good.tolist(), weights, strict=True):
        lam, value = (1.5, sigmoid(beta * (r - kl))) if desirable else (0.7, sigmoid(beta * (kl - r)))
        expected += w * lam * (1 - value)
    total, count, metrics = kto_loss(
        tensor(*ratios), good, kl=kl, beta=beta, good_weight=1.5, bad_weight=0.7, weight=tensor(*weights)
    )
    assert total.item() == pytest.approx(expected, abs=1e-9)
    assert count == pytest.approx(sum(weights)), "lambda is no part of the mean's denominator"
    right = sum(w for r, d, w in zip(ratios, good.tolist(), weights, strict=True) if (r > kl) == d)
    assert metrics["preference/accuracy"] == pytest.approx(right)
    rewards = [beta * r * w for r, d, w in zip(ratios, good.tolist(), weights, strict=True) if d]
    assert metrics["preference/chosen_reward"] == pytest.approx(sum(rewards))
    assert metrics["preference/good"] + metrics["preference/bad"] == pytest.approx(count)

    chosen, rejected = (-4 * torch.rand(2, 20, generator=g, dtype=torch.float64)).tolist()
    simpo = orpo = 0.0
    for c, r, w in zip(chosen, rejected, weights, strict=True):
        simpo -= w * math.log(sigmoid(2.5 * c - 2.5 * r - 1.4))
        odds = [math.exp(x) / (1 - math.exp(x)) for x in (c, r)]
        orpo += w * (-c - 0.1 * math.log(sigmoid(math.log(odds[0] / odds[1]))))
    pairs = tensor(*chosen), tensor(*rejected)
    total, count, metrics = simpo_loss(*pairs, beta=2.5, gamma=1.4, weight=tensor(*weights))
    assert (total.item(), count) == (pytest.approx(simpo, abs=1e-9), pytest.approx(sum(weights)))
    gap = sum(w * 2.5 * (c - r) for c, r, w in zip(chosen, rejected, weights, strict=True))
    assert metrics["preference/margin"] == pytest.approx(gap), "the target margin is no part of the reward"
    total, count, metrics = orpo_loss(*pairs, beta=0.1, weight=tensor(*weights))
    assert (total.item(), count) == (pytest.approx(orpo, abs=1e-9), pytest.approx(sum(weights)))


def test_kto_pulls_every_answer_away_from_the_reference_point_to_its_own_side():
    ratio = tensor(0.0, 0.0, grad=True)
    kto_loss(ratio, torch.tensor([True, False]), kl=0.0, beta=0.1)[0].backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == pytest.approx([-0.1 / 4, 0.1 / 4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odds_of_a_certain_and_of_an_unthinkable_answer_are_finite(dtype):
    chosen = torch.tensor([0.0, -1e-9, -200.0], dtype=dtype, requires_grad=True)
    total, _, _ = orpo_loss(chosen, torch.tensor([-200.0, -1.0, 0.0], dtype=dtype), beta=0.1)
    total.backward()
    assert torch.isfinite(total)
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()
    assert chosen.grad[2] < -1


def test_a_pair_of_dpo_counts_its_weight():
    chosen, zeros, weight = tensor(1.0, -2.0), tensor(0.0, 0.0), tensor(3.0, 0.5)
    total, count, metrics = dpo_loss(chosen, zeros, zeros, zeros, beta=0.5, weight=weight)
    assert (total.item(), count) == (pytest.approx(3 * softplus(-0.5) + 0.5 * softplus(1.0)), 3.5)
    assert metrics["preference/accuracy"] == 3
    assert metrics["preference/chosen_reward"] == pytest.approx(0.5 * (3 - 1))
