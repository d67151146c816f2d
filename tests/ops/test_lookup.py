import torch

from postgrad.ops.lookup import Lookup


def test_the_gradient_is_torchs_whether_there_is_one_already_or_not():
    weight = torch.nn.Parameter(torch.randn(7, 4))
    plain = torch.nn.Parameter(weight.detach().clone())
    for ids in (torch.tensor([[1, 5, 1], [0, 6, 1]]), torch.tensor([[2, 2, 5]])):
        upstream = torch.randn(*ids.shape, 4)
        out, expected = Lookup.apply(ids, weight), torch.nn.functional.embedding(ids, plain)
        assert torch.equal(out, expected)
        (out * upstream).sum().backward()
        (expected * upstream).sum().backward()
        torch.testing.assert_close(weight.grad, plain.grad)
