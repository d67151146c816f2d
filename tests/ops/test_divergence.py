"""The chunked reverse KL against the sum over a vocabulary that fits into memory, values and gradients."""

import pytest
import torch

from postgrad.ops.divergence import reverse_kl
from postgrad.ops.logprobs import Unembedding, token_logprobs

N, D, E, V = 7, 5, 3, 11


def numbers(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def student(softcap=None):
    weight, bias = numbers(V, D, seed=1).requires_grad_(), numbers(V, seed=2).requires_grad_()
    return Unembedding(weight, bias, 0.7, softcap)


def dense_logits(hidden, unembedding, temperature):
    logits = unembedding.scale * (hidden @ unembedding.weight_VD.T + unembedding.bias_V)
    if unembedding.softcap is not None:
        logits = unembedding.softcap * torch.tanh(logits / unembedding.softcap)
    return logits / temperature


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_are_those_of_the_sum_over_all_words(softcap, temperature):
    hidden, teacher_hidden = numbers(N, D, seed=3).requires_grad_(), numbers(N, E, seed=4).requires_grad_()
    teacher = Unembedding(numbers(V, E, seed=5), numbers(V, seed=6))
    targets = torch.arange(N) % V
    given = student(softcap)
    kl, logprobs, entropy = reverse_kl(
        hidden, given, teacher_hidden, teacher, targets, temperature=temperature, chunk=3
    )
    weights = numbers(N, seed=7)
    (kl * weights).sum().backward()
    found = [hidden.grad.clone(), given.weight_VD.grad.clone(), given.bias_V.grad.clone()]
    assert teacher_hidden.grad is None
    for tensor in (hidden, given.weight_VD, given.bias_V):
        tensor.grad = None
    p = dense_logits(hidden, given, temperature).softmax(1)
    q = dense_logits(teacher_hidden.detach(), teacher, temperature).softmax(1)
    expected = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(kl, expected)
    torch.testing.assert_close(entropy, -(p * p.log()).sum(1))
    torch.testing.assert_close(logprobs, p.log()[torch.arange(N), targets])
    (expected * weights).sum().backward()
    for ours, theirs in zip(found, (hidden.grad, given.weight_VD.grad, given.bias_V.grad), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logprobs_and_entropy_are_those_that_the_trainer_reads_elsewhere():
    hidden, targets = numbers(N, D, seed=3).float(), torch.arange(N) % V
    weight = Unembedding(numbers(V, D, seed=1).float())
    _, logprobs, entropy = reverse_kl(hidden, weight, hidden, weight, targets, temperature=0.8)
    expected = token_logprobs(hidden, weight, targets, temperature=0.8)
    torch.testing.assert_close((logprobs, entropy), expected)


def test_a_teacher_that_is_the_student_is_at_no_distance():
    hidden, given = numbers(N, D, seed=3), student()
    kl, _, _ = reverse_kl(hidden, given, hidden, given, torch.zeros(N, dtype=torch.int64))
    torch.testing.assert_close(kl, torch.zeros(N, dtype=torch.float64))
