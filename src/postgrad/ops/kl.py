"""Monte Carlo estimates of KL(policy || reference) from tokens that the policy sampled."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KlKind = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KlKind) -> Tensor:
    """Schulman, "Approximating KL divergence" (2020), per token, in nats. With d = logprobs - ref_logprobs:

    k1 = d, unbiased; k2 = d^2 / 2, biased, low variance; k3 = exp(-d) - 1 + d, unbiased and never negative.
    As losses they differ: in expectation k1 has no gradient, k2 that of KL(policy || reference), and k3 that of
    KL(reference || policy) unless it is multiplied by the differentiable ratio policy / sampling policy.

    Raises:
        ValueError: unknown kind.
    """
    d = logprobs - ref_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"KL estimate {kind!r} is not one of k1, k2, k3")


def next_kl_coef(kl_coef: float, kl: float, *, target: float) -> float:
    """Ziegler et al. 2019 (arXiv 1909.08593, section 2.2): move the coefficient so that KL goes to `target`.

    Both divergences are in nats an answer. One step changes the coefficient by 2 % at most.
    """
    error = min(max((kl - target) / target, -0.2), 0.2)
    return kl_coef * (1 + 0.1 * error)
