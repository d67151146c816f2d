import pytest
import torch

from postgrad.ops.fused import GatedProduct, rms_norm


def test_rms_norm_is_the_formula_and_its_gradient():
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-2), expected)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, 1e-2), expected)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-2), (x, weight))


@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_product_is_the_formula_and_its_gradient(bias):
    gate, up = torch.randn(2, 5, 6, dtype=torch.float64).unbind()
    weight = torch.randn(4, 6, dtype=torch.float64)
    given = [x.requires_grad_() for x in (gate, up, weight, torch.randn(4, dtype=torch.float64))]
    if not bias:
        given[3] = None
    expected = torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, weight, given[3])
    torch.testing.assert_close(GatedProduct.apply(*given), expected)
    assert torch.autograd.gradcheck(GatedProduct.apply, given)


def test_a_gated_products_second_gradient_is_added_in_place():
    gate, up = torch.randn(2, 5, 6).unbind()
    weight = torch.nn.Parameter(torch.randn(4, 6))
    GatedProduct.apply(gate, up, weight, None).sum().backward()
    once = weight.grad.clone()
    first = weight.grad
    GatedProduct.apply(gate, up, weight, None).sum().backward()
    assert weight.grad is first
    torch.testing.assert_close(first, 2 * once)
