import pytest
import torch

from postgrad.ops.kl import kl_estimate, next_kl_coef

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
REVERSE_KL_GRADIENT = [0.346243, -0.220389, -0.125854]
FORWARD_KL_GRADIENT = [0.3, -0.2, -0.1]


@pytest.mark.parametrize(
    ("kind", "mean", "variance"),
    [("k1", 0.2238046572, 0.480869), ("k2", 0.2654787944, 0.024093), ("k3", 0.2238046572, 0.009005)],
)
def test_estimates_have_the_expected_mean_and_variance(kind, mean, variance):
    k = kl_estimate(P.log(), Q.log(), kind)
    assert (P * k).sum().item() == pytest.approx(mean, abs=1e-9)
    assert (P * (k - mean) ** 2).sum().item() == pytest.approx(variance, abs=1e-6)


def expected_loss_gradient(kind, *, ratio_weighted):
    """Gradient at the logits of E over tokens sampled from P, the sampling itself held fixed."""
    logits = P.log().clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    k = kl_estimate(logprobs, Q.log(), kind)
    weight = (logprobs - logprobs.detach()).exp() if ratio_weighted else 1.0
    (P * weight * k).sum().backward()
    assert logits.grad is not None
    return logits.grad.tolist()


@pytest.mark.parametrize(
    ("kind", "ratio_weighted", "gradient"),
    [
        ("k1", False, [0, 0, 0]),
        ("k2", False, REVERSE_KL_GRADIENT),
        ("k3", False, FORWARD_KL_GRADIENT),
        ("k3", True, REVERSE_KL_GRADIENT),
    ],
)
def test_as_losses_the_estimates_have_different_gradients(kind, ratio_weighted, gradient):
    assert expected_loss_gradient(kind, ratio_weighted=ratio_weighted) == pytest.approx(gradient, abs=1e-6)


def test_reference_gradients_are_those_of_the_two_divergences():
    logits = P.log().clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    (reverse,) = torch.autograd.grad((logprobs.exp() * (logprobs - Q.log())).sum(), logits, retain_graph=True)
    (forward,) = torch.autograd.grad((Q * (Q.log() - logprobs)).sum(), logits)
    assert reverse.tolist() == pytest.approx(REVERSE_KL_GRADIENT, abs=1e-6)
    assert forward.tolist() == pytest.approx(FORWARD_KL_GRADIENT, abs=1e-6)


def test_k3_of_nearly_equal_policies_is_not_lost_in_float32_rounding():
    k3 = kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.001]), "k3").item()
    assert k3 == pytest.approx(5e-7, rel=0.1)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'k4' is not one of k1, k2, k3"):
        kl_estimate(P, Q, "k4")


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (0.0, 0.98), (-3.0, 0.98)]
)
def test_the_adaptive_coefficient_moves_by_a_tenth_of_the_relative_error_and_two_percent_at_most(kl, factor):
    assert next_kl_coef(0.5, kl, target=6.0) == pytest.approx(0.5 * factor)
