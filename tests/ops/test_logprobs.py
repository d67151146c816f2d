import pytest
import torch

from postgrad.ops.logprobs import Unembedding, token_logprobs, wide_sum


def inputs(n=11, d=6, v=17, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=g, dtype=dtype).mul_(2).requires_grad_()
    weight = torch.randn(v, d, generator=g, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(v, (n,), generator=g)


def of_weight(hidden, weight, targets, **kwargs):
    return token_logprobs(hidden, Unembedding(weight), targets, **kwargs)


def plain(hidden, weight, targets, temperature):
    logp = (hidden @ weight.T / temperature).log_softmax(-1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def gradients(function, hidden, weight, targets, **kwargs):
    logprobs, entropy = function(hidden, weight, targets, **kwargs)
    rising = torch.arange(1, len(targets) + 1, dtype=logprobs.dtype)
    return torch.autograd.grad((rising * logprobs).sum() + (entropy * rising.cos()).sum(), (hidden, weight))


def test_two_tokens_by_hand():
    weight = torch.tensor([[1.0], [0.0]])
    logprobs, entropy = of_weight(torch.tensor([[0.0], [3.0]]).log1p(), weight, torch.tensor([0, 1]))
    assert logprobs.tolist() == pytest.approx([-0.693147, -1.609438], abs=1e-6)
    assert entropy.tolist() == pytest.approx([0.693147, 0.500402], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_values_and_gradients_equal_log_softmax(temperature):
    case = inputs()
    for a, b in zip(
        of_weight(*case, temperature=temperature, chunk=4), plain(*case, temperature=temperature), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    ours = gradients(of_weight, *case, temperature=temperature, chunk=4)
    for a, b in zip(ours, gradients(plain, *case, temperature=temperature), strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_float32_over_a_large_vocabulary_stays_within_1e_6_of_float64():
    hidden, weight, targets = inputs(n=5, d=8, v=4000, dtype=torch.float32)
    exact = plain(hidden.double(), weight.double(), targets, 1.0)
    for a, b in zip(of_weight(hidden, weight, targets, chunk=2), exact, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-6)
    ours = gradients(of_weight, hidden, weight, targets, chunk=2)
    truth = gradients(
        plain,
        hidden.detach().double().requires_grad_(),
        weight.detach().double().requires_grad_(),
        targets,
        temperature=1.0,
    )
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5)


def test_gradcheck():
    hidden, weight, targets = inputs(n=3, d=2, v=5)

    def both(h, w):
        return of_weight(h, w, targets, temperature=0.7, chunk=2)

    assert torch.autograd.gradcheck(both, (hidden, weight))


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (1.0, 1.5), (2.5, 0.8)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_bias_a_scale_and_a_softcap_in_values_and_gradients(biased, scale, softcap):
    hidden, weight, targets = inputs()
    bias = weight.detach()[:, 0].cos().requires_grad_()
    given = (hidden, weight, bias) if biased else (hidden, weight)

    def ours(hidden, weight, bias=None):
        return token_logprobs(hidden, Unembedding(weight, bias, scale, softcap), targets, temperature=0.7, chunk=4)

    def expected(hidden, weight, bias=0.0):
        logits = scale * (hidden @ weight.T + bias)
        logits = logits if softcap is None else softcap * (logits / softcap).tanh()
        logp = (logits / 0.7).log_softmax(-1)
        return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)

    sums = []
    for function in (ours, expected):
        logprobs, entropy = function(*given)
        sums.append((logprobs, entropy))
        rising = torch.arange(1, len(targets) + 1, dtype=logprobs.dtype)
        sums.append(torch.autograd.grad((rising * logprobs).sum() + (entropy * rising.cos()).sum(), given))
    for a, b in zip((*sums[0], *sums[1]), (*sums[2], *sums[3]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)
    assert torch.autograd.gradcheck(ours, given)


@pytest.mark.parametrize("output", [0, 1])
def test_either_result_can_be_differentiated_alone(output):
    hidden, weight, targets = inputs()
    ours = torch.autograd.grad(of_weight(hidden, weight, targets, chunk=4)[output].sum(), (hidden, weight))
    truth = torch.autograd.grad(plain(hidden, weight, targets, 1.0)[output].sum(), (hidden, weight))
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


@pytest.mark.parametrize("chunk", [1, 2, 5, 10, 11, 500])
def test_the_chunk_size_changes_nothing(chunk):
    case = inputs()
    for a, b in zip(of_weight(*case, chunk=chunk), of_weight(*case, chunk=3), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    ours, other = (gradients(of_weight, *case, chunk=c) for c in (chunk, 3))
    for a, b in zip(ours, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


@pytest.mark.parametrize("trained", [0, 1])
def test_a_frozen_input_gets_no_gradient_and_does_not_disturb_the_other(trained):
    hidden, weight, targets = inputs()
    truth = gradients(of_weight, hidden, weight, targets)[trained]
    pair = [hidden.detach(), weight.detach()]
    pair[trained].requires_grad_()
    logprobs, entropy = of_weight(*pair, targets)
    rising = torch.arange(1, 12, dtype=torch.float64)
    ((rising * logprobs).sum() + (entropy * rising.cos()).sum()).backward()
    torch.testing.assert_close(pair[trained].grad, truth)
    assert pair[1 - trained].grad is None


def test_huge_logits_overflow_nowhere():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    logprobs, entropy = of_weight(hidden, torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([0, 0]))
    (logprobs + entropy).sum().backward()
    assert logprobs.tolist() == [0, -20000]
    assert entropy.tolist() == [0, 0]
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[0], [2]]


def test_half_precision_inputs_are_computed_in_float32_and_get_gradients_of_their_own_type():
    hidden, weight, targets = (x.detach() for x in inputs(dtype=torch.float32))
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    logprobs, entropy = of_weight(hidden, weight, targets)
    exact = plain(hidden.double(), weight.double(), targets, 1.0)
    for a, b in zip((logprobs, entropy), exact, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=0)
    logprobs.sum().backward()
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16)


def test_no_tensor_of_tokens_by_vocabulary_is_ever_allocated():
    hidden, weight, targets = inputs(n=64, d=2, v=1000, dtype=torch.float32)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        logprobs, entropy = of_weight(hidden, weight, targets, chunk=4)
        (logprobs + entropy).sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < 64 * 1000 * 4 / 2


def test_no_tokens_give_no_logprobs_and_zero_gradients():
    hidden, weight, _ = inputs(n=2)
    logprobs, entropy = of_weight(hidden[:0], weight, torch.zeros(0, dtype=torch.int64))
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.tolist() == entropy.tolist() == []
    assert weight.grad is not None
    assert weight.grad.abs().max().item() == 0


def test_a_sum_over_a_whole_vocabulary_loses_no_digit_of_float32():
    weights = torch.rand(3, 49_155, generator=torch.Generator().manual_seed(0)).exp()
    truth = weights.double().sum(1)
    assert float((wide_sum(weights) / truth - 1).abs().max()) < 5e-8
    assert wide_sum(weights[:, :7]).tolist() == weights[:, :7].double().sum(1).tolist()
