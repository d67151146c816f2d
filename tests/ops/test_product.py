import ctypes

import pytest
import torch

from postgrad.models.linear import use_fast_products
from postgrad.ops.product import _ONEDNN, AdaptedProduct, PackedWeight, Product, product


@pytest.mark.parametrize("rows", [1, 2, 3, 12, 33, 200])
@pytest.mark.parametrize(("outer", "inner"), [(128, 96), (192, 576), (576, 1536)])
def test_a_row_of_a_packed_product_has_the_bits_that_it_has_among_many_unpacked(rows, outer, inner):
    x, weight = torch.randn(300, inner), torch.randn(outer, inner)
    bias = torch.randn(outer)
    assert torch.equal(PackedWeight(weight)(x[:rows]), product(x, weight)[:rows])
    expected = product(x[:rows], weight, bias)
    torch.testing.assert_close(PackedWeight(weight)(x[:rows], bias), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not _ONEDNN, reason="another library multiplies here")
@pytest.mark.parametrize("inner", [16, 576, 1536])
def test_a_row_alone_has_the_bits_that_it_has_among_others(inner):
    x, weight = torch.randn(40, inner), torch.randn(576, inner)
    assert torch.equal(product(x[:1], weight), product(x, weight)[:1])


def test_a_packed_weight_knows_when_its_parameter_has_changed():
    weight = torch.nn.Parameter(torch.randn(8, 4))
    packed = PackedWeight(weight)
    assert packed.is_of(weight)
    with torch.no_grad():
        weight.add_(1)
    assert not packed.is_of(weight)
    assert not packed.is_of(torch.nn.Parameter(weight.detach()))


def test_a_second_gradient_is_added_to_the_first_in_place():
    weight = torch.nn.Parameter(torch.randn(5, 7))
    xs = torch.randn(2, 3, 7)
    Product.apply(xs[0], weight, None).square().sum().backward()
    first = weight.grad
    Product.apply(xs[1], weight, None).square().sum().backward()
    assert weight.grad is first
    plain = weight.detach().clone().requires_grad_()
    (xs @ plain.T).square().sum().backward()
    torch.testing.assert_close(weight.grad, plain.grad)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients_are_those_of_torch(dtype, bias):
    x, weight = torch.randn(7, 24, dtype=dtype, requires_grad=True), torch.randn(5, 24, dtype=dtype, requires_grad=True)
    given = (x, weight, torch.randn(5, dtype=dtype, requires_grad=True) if bias else None)
    leaves = [t for t in given if t is not None]
    out, expected = Product.apply(*given), torch.nn.functional.linear(*given)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, upstream)
    for a, b in zip(found, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(a, b)


def test_a_frozen_weight_costs_no_gradient():
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3)
    out = Product.apply(x, weight, None)
    assert out.grad_fn.needs_input_grad == (True, False, False)
    out.sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(4, 3))


def test_layers_keep_their_parameters_and_any_number_of_dimensions():
    layer = torch.nn.Linear(6, 4)
    model = torch.nn.Sequential(layer)
    x = torch.randn(2, 3, 5, 6)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    weight = layer.weight
    use_fast_products(model)
    assert model[0].weight is weight
    torch.testing.assert_close(model(x), expected)
    assert model(x[:0]).shape == (0, 3, 5, 4)


@pytest.mark.parametrize("bias", [True, False])
def test_an_adapted_product_and_its_gradients_are_those_of_the_formula(bias):
    x = torch.randn(9, 12, dtype=torch.float64, requires_grad=True)
    weight, b = torch.randn(7, 12, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    a = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(7, dtype=torch.float64) if bias else None
    out = AdaptedProduct.apply(x, weight, offset, a, b, 2.0)
    expected = x @ (weight + 2 * b @ a).T + (offset if bias else 0)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, (x, a, b), upstream)
    for mine, theirs in zip(found, torch.autograd.grad(expected, (x, a, b), upstream), strict=True):
        torch.testing.assert_close(mine, theirs)


class HeapInfo(ctypes.Structure):
    _fields_ = [(f"_{i}", ctypes.c_size_t) for i in range(7)] + [
        (name, ctypes.c_size_t) for name in ("used", "free", "top")
    ]


@pytest.mark.skipif(not _ONEDNN, reason="another library multiplies here")
def test_products_of_ever_other_shapes_do_not_pile_up():
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("the C library does not say what its heap holds")
    libc.mallinfo2.restype = HeapInfo
    weight = torch.randn(576, 576)
    held = []
    for rows in range(200, 600):
        product(torch.randn(rows, 576), weight)
        held.append(libc.mallinfo2().used)
    assert held[-1] - held[80] < 20e6, "400 kept shapes are 150 MB"
