"""A device that is not there: tensors that say "cuda" and compute on the CPU.

Whatever mixes them with tensors of the CPU fails, as it would on a GPU, so device errors show on any machine; and the
numbers are real, so results can be compared. Not pretended: kernels, streams, what a GPU computes in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
_TO = torch.ops.aten.to
COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default, _TO.device, _TO.dtype_layout, _TO.dtype}


class OnCuda(torch.Tensor):
    """A tensor of the CPU in disguise."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnCuda:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="meta", requires_grad=inner.requires_grad,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @property  # type: ignore[override]
    def device(self) -> torch.device:
        return CUDA

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCuda({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_flatten((args, kwargs))[0]
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        if func not in COPIES:
            strangers = [x for x in tensors if not isinstance(x, OnCuda) and x.ndim > 0]
            assert not strangers, f"{func} mixes cuda with a tensor {tuple(strangers[0].shape)} of the CPU"
        stays = not any(isinstance(x, torch.device) and x == CPU for x in leaves)
        plain_args, plain_kwargs = tree_map(_unwrapped, (args, kwargs))
        out = _mm_widened(*plain_args) if func is torch.ops.aten.mm.dtype else func(*plain_args, **plain_kwargs)
        # In place, or into `out`: what came in goes out.
        given = {id(x.inner): x for x in tensors if isinstance(x, OnCuda)}
        cpu_target = func is torch.ops.aten.copy_.default and not isinstance(args[0], OnCuda)
        if not stays or cpu_target:
            return out.clone() if out is plain_args[0] and not cpu_target else out
        return tree_map(lambda x: given.get(id(x)) if id(x) in given else _wrapped(x), out)


def _mm_widened(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the CPU lacks: a product of bfloat16 factors in float32."""
    assert a.dtype == b.dtype == torch.bfloat16
    return a.to(dtype) @ b.to(dtype)


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, attn_mask: torch.Tensor | None = None,
    scale: float, enable_gqa: bool = False, dropout_p: float = 0.0, is_causal: bool = False,
) -> torch.Tensor:  # fmt: skip
    """By its definition: the one of a tensor without storage makes scalars of its own that have no value."""
    assert dropout_p == 0.0
    if attn_mask is None:
        assert is_causal
        attn_mask = q.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    repeats = q.shape[1] // k.shape[1]
    assert repeats == 1 or enable_gqa
    k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
    return (q @ k.transpose(2, 3) * scale).masked_fill(~attn_mask, -torch.inf).softmax(-1) @ v


def _unwrapped(x: Any) -> Any:
    if isinstance(x, torch.device):
        return CPU
    if isinstance(x, torch.Tensor) and not isinstance(x, OnCuda) and x.is_meta:
        return torch.zeros((), dtype=x.dtype)  # autograd's own zero, where a branch of the graph has no gradient
    return x.inner if isinstance(x, OnCuda) else x


def _wrapped(x: Any) -> Any:
    return OnCuda(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnCuda) else x


class _Factories(TorchFunctionMode):
    """`torch.zeros(..., device="cuda")`, `x.to("cuda")` and their like, which would look for a driver."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], OnCuda):
            return _attention(*args, **kwargs)
        if func is torch.Tensor.tolist:
            return func(_unwrapped(args[0]))
        if func is torch.Tensor.backward:
            with self:  # for what is computed again on the way
                return torch.autograd.backward(args[0])
        if func is torch.Tensor.__setitem__ and isinstance(args[0], OnCuda) and isinstance(args[2], (int, float)):
            args = (*args[:2], OnCuda(torch.tensor(args[2], dtype=args[0].dtype)))
        wanted = [d for d in (*args, *kwargs.values()) if _is_cuda(d)]
        if not wanted or func in (torch.device, torch._C._nn._parse_to):
            return func(*args, **kwargs)
        known = any(isinstance(x, OnCuda) for x in args)
        stands_for = torch.device("meta" if known else "cpu")
        args = [stands_for if _is_cuda(a) else a for a in args]
        out = func(*args, **{k: stands_for if _is_cuda(v) else v for k, v in kwargs.items()})
        if isinstance(out, OnCuda):
            return out
        return OnCuda(out.detach().clone() if any(out is a for a in args) else out)


def _is_cuda(x: Any) -> bool:
    return x == "cuda" if isinstance(x, str) else isinstance(x, torch.device) and x.type == "cuda"


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """Within, "cuda" is `OnCuda` and `torch.cuda.is_available()`."""
    with pytest.MonkeyPatch.context() as patch, _Factories():
        patch.setattr(torch.cuda, "is_available", lambda: True)
        # Tied weights stay tied when a module moves.
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
