"""Packed attention against the same thing by a mask over everything, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from postgrad.ops.attention import Spans, packed_attention, plan_attention, spans_mask

HEADS, SHARED, SIZE = 6, 2, 8


def tensors(num, *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, heads, num, SIZE, dtype=dtype, generator=generator).requires_grad_()
        for heads in (HEADS, SHARED, SHARED)
    ]


def by_mask(q, k, v, spans, scale):
    mask = spans_mask(spans, 1, q.shape[2])
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def bundles(*sizes):
    """Spans of bundles laid end to end, each (prefix, answers...)."""
    causal, shared, at = [], [], 0
    for prefix, *answers in sizes:
        start = at + prefix
        if prefix:
            causal.append((at, start))
            shared.append((start, start + sum(answers), at, start))
        for answer in answers:
            causal.append((start, start + answer))
            start += answer
        at = start
    return Spans(tuple(causal), tuple(shared)), at


CASES = {
    "one sequence": bundles((0, 9)),
    "one token": bundles((0, 1)),
    "sequences of one length": bundles((0, 40), (0, 40), (0, 40)),
    "sequences of many lengths": bundles((0, 200), (0, 3), (0, 41), (0, 199), (0, 40), (0, 1)),
    "siblings": bundles((30, 5, 1, 12)),
    "groups of siblings between others": bundles((0, 70), (7, 90, 3), (0, 2), (100, 8, 8, 8, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_a_mask(case):
    spans, num = CASES[case]
    q, k, v = tensors(num)
    out = packed_attention(q, k, v, plan_attention(spans), scale=0.4, exact=False)
    expected = by_mask(q, k, v, spans, 0.4)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    upstream = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad(out, (q, k, v), upstream), torch.autograd.grad(expected, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@given(st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=5), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_any_bundles(sizes):
    spans, num = bundles(*sizes)
    q, k, v = tensors(num)
    out = packed_attention(q, k, v, plan_attention(spans), scale=1.0, exact=False)
    torch.testing.assert_close(out, by_mask(q, k, v, spans, 1.0), atol=1e-12, rtol=0)


def test_numbers_of_a_head_that_do_not_lie_side_by_side_are_read_right():
    spans, num = CASES["siblings"]
    q, k, v = tensors(num)
    apart = [x.detach().transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    assert apart[0].stride(-1) != 1
    plan = plan_attention(spans)
    torch.testing.assert_close(
        packed_attention(*apart, plan, scale=0.4, exact=False), packed_attention(q, k, v, plan, scale=0.4, exact=False)
    )


def test_exact_sums_are_those_of_float64_rounded_once():
    spans, num = CASES["groups of siblings between others"]
    q, k, v = (x.detach() for x in tensors(num, dtype=torch.float32))
    plan = plan_attention(spans)
    truth = by_mask(q.double(), k.double(), v.double(), spans, 0.4)
    found = packed_attention(q, k, v, plan, scale=0.4, exact=True)
    assert float((found == truth.float()).double().mean()) > 0.999
    plain = packed_attention(q, k, v, plan, scale=0.4, exact=False)
    assert float((plain == truth.float()).double().mean()) < 0.9


def test_a_neighbour_changes_no_bit():
    spans, num = bundles((0, 50), (0, 50), (0, 49))
    q, k, v = (x.detach() for x in tensors(num, dtype=torch.float32))
    plan = plan_attention(spans)
    before = packed_attention(q, k, v, plan, scale=0.4, exact=False)
    for x in (q, k, v):
        x[:, :, 50:100] = 7.0
    after = packed_attention(q, k, v, plan, scale=0.4, exact=False)
    assert torch.equal(before[:, :, :50], after[:, :, :50])
    assert torch.equal(before[:, :, 100:], after[:, :, 100:])
    assert not torch.equal(before[:, :, 50:100], after[:, :, 50:100])


def test_spans_of_similar_length_share_a_call_and_others_do_not():
    spans, _ = bundles((0, 300), (0, 290), (0, 20), (0, 100), (0, 18))
    plan = plan_attention(spans)
    assert [tuple(valid.shape) for _, valid in plan.padded] == [(2, 300), (2, 20)]
    assert plan.single == ((610, 710),)
