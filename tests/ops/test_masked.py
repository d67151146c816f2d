import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postgrad.ops.masked import masked_mean, masked_whiten, reduced_sum

NAN = float("nan")
ADVANTAGES = torch.tensor([[0.46575, 0.385, 0.3, NAN]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True, False]])


def test_mean_ignores_what_is_masked_even_nan():
    assert masked_mean(ADVANTAGES, MASK).item() == pytest.approx((0.46575 + 0.385 + 0.3) / 3)


def test_mean_divides_by_selected_entries_of_the_whole_tensor_not_by_rows():
    x = torch.tensor([[6.0, 0.0], [1.0, 2.0]])
    mask = torch.tensor([[True, False], [True, True]])
    assert masked_mean(x, mask).item() == 3.0


def test_mean_of_nothing_is_refused():
    with pytest.raises(AssertionError, match="at least one"):
        masked_mean(torch.ones(2), torch.zeros(2, dtype=torch.bool))


def test_masked_entries_receive_no_gradient():
    x = ADVANTAGES.clone().requires_grad_()
    masked_mean(x, MASK).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0]], dtype=torch.float64))


def test_whitening_uses_the_unbiased_variance():
    whitened = masked_whiten(ADVANTAGES, MASK, shift_mean=True)
    golden = torch.tensor([[0.991344, 0.017092, -1.008436, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(whitened, golden, atol=1e-6, rtol=0)


def test_whitening_without_shift_keeps_the_mean():
    shifted = masked_whiten(ADVANTAGES, MASK, shift_mean=True)
    kept = masked_whiten(ADVANTAGES, MASK, shift_mean=False)
    torch.testing.assert_close(kept[MASK] - shifted[MASK], masked_mean(ADVANTAGES, MASK).expand(3))
    assert kept[0, 3].item() == 0


def test_whitening_one_entry_has_no_variance_to_divide_by():
    x, mask = torch.tensor([5.0, 7.0]), torch.tensor([True, False])
    assert masked_whiten(x, mask, shift_mean=True).tolist() == [0, 0]
    assert masked_whiten(x, mask, shift_mean=False).tolist() == [5, 0]


@given(
    st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=4, max_size=20),
    st.floats(0.5, 50),
    st.floats(-100, 100),
)
def test_whitened_entries_have_mean_zero_variance_one_whatever_the_scale(entries, scale, shift):
    x = torch.tensor([value for value, _ in entries], dtype=torch.float64)
    mask = torch.tensor([keep for _, keep in entries])
    mask[:2], x[0], x[1] = True, -3, 4
    whitened = masked_whiten(x, mask, shift_mean=True)
    assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-7)
    assert whitened[mask].var().item() == pytest.approx(1, abs=1e-6)
    assert whitened[~mask].abs().sum().item() == 0
    torch.testing.assert_close(masked_whiten(x * scale + shift, mask, shift_mean=True), whitened, atol=1e-6, rtol=0)


LOSS = torch.tensor([[-1.0, -1, NAN, NAN], [1, 1, 1, 1], [NAN] * 4], dtype=torch.float64)
TWO_AND_FOUR = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])


@pytest.mark.parametrize(
    ("reduction", "mean", "count"), [("token", 1 / 3, 6), ("sequence", 0.0, 2), (4, 0.25, 2), (8, 0.125, 2)]
)
def test_reductions_golden(reduction, mean, count):
    total, counted = reduced_sum(LOSS, TWO_AND_FOUR, reduction)
    assert (total.item() / counted, counted) == (pytest.approx(mean), count)


@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from(["token", "sequence", 5]))
def test_parts_of_a_batch_add_up_to_the_reduction_of_the_whole(seed, cut, reduction):
    g = torch.Generator().manual_seed(seed)
    x, mask = torch.randn(5, 6, generator=g, dtype=torch.float64), torch.rand(5, 6, generator=g) > 0.4
    total, count = reduced_sum(x, mask, reduction)
    first, second = (reduced_sum(x[part], mask[part], reduction) for part in (slice(cut), slice(cut, None)))
    assert total.item() == pytest.approx((first[0] + second[0]).item())
    assert count == first[1] + second[1]
