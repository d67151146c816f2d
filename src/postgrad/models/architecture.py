"""What an architecture does around its layers, and whether it says the same here as by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from postgrad.errors import DataError
from postgrad.ops.logprobs import Unembedding

PROBE = 8
"""Tokens of a sequence that a model is tried with."""


def model_type(lm: Any) -> str:
    """Its name in transformers."""
    return str(lm.config.get_text_config().model_type)


def context_of(config: Any) -> int:
    """Most tokens of a sequence.

    Phi-3's "longrope" turns every position of a forward pass otherwise once one sequence is longer than the original
    context, so that an answer would depend on its neighbours; it stays within that.

    Raises:
        DataError: the configuration does not say.
    """
    config = config.get_text_config()
    if not hasattr(config, "max_position_embeddings"):
        raise DataError(f"{config.model_type!r} models do not run here: their configuration states no context length")
    longest = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    return min(longest, rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else longest


def unembedding_of(lm: Any) -> Unembedding:
    """How last hidden states become logits; Cohere multiplies them, Granite divides them, Gemma 2 bounds them."""
    config, output = lm.config.get_text_config(), lm.get_output_embeddings()
    scale = getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1.0)
    bias_V = getattr(output, "bias", None)
    softcap, packed = getattr(config, "final_logit_softcapping", None), getattr(output, "packed", None)
    return Unembedding(output.weight, bias_V, scale, softcap, packed)


def probe(lm: Any) -> torch.Tensor:
    """Three sequences to try a model with, [3, T]; the first half of two of them is the same."""
    length = min(PROBE, context_of(lm.config))
    ids_BT: torch.Tensor = (1 + 37 * torch.arange(3 * length).view(3, length)) % lm.config.get_text_config().vocab_size
    ids_BT[1, : length // 2] = ids_BT[0, : length // 2]
    return ids_BT


@torch.no_grad()
def own_logprobs(lm: Any) -> torch.Tensor:
    """What transformers says of the probe, [3, T]; zero for the first tokens."""
    ids_BT = probe(lm)
    with refusing(lm):
        logits_BTV = lm(input_ids=ids_BT.to(lm.device), use_cache=False).logits.cpu()
    logp_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32)).log_softmax(-1)
    following_BT: torch.Tensor = logp_BTV[:, :-1].gather(2, ids_BT[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(following_BT, (1, 0))


@contextmanager
def refusing(lm: Any) -> Iterator[None]:
    """Every architecture has its own way of not being what is expected of it; to the user all are one mistake."""
    try:
        yield
    except Exception as e:  # noqa: BLE001
        reason = str(e) if isinstance(e, DataError) else f"{type(e).__name__}: {str(e).partition(chr(10))[0]}"
        raise DataError(f"{model_type(lm)!r} models do not run here: {reason}") from None


def require_same(lm: Any, whole_N: torch.Tensor, found_N: torch.Tensor, *, where: str) -> None:
    """Refuse an architecture that does something which is not done here.

    Args:
        lm: the model.
        whole_N: logprobs of single sequences.
        found_N: logprobs of the same tokens, computed another way.
        where: which way, for the message.

    Raises:
        DataError: they differ by more than rounding does.
    """
    bound = torch.finfo(lm.dtype).eps ** 0.5 * float(whole_N.abs().max())
    difference = float((whole_N - found_N).abs().max())
    if not difference <= bound:
        raise DataError(
            f"{model_type(lm)!r} models do not run here: logprobs of {where} differ by {difference:.2g} from those of "
            f"one sequence alone, where rounding explains {bound:.2g}"
        )
