"""Reverse KL between two models over the whole vocabulary, straight from hidden states: [N, V] is never in memory.

Shape suffixes: N tokens, D and E hidden sizes of student and teacher, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from postgrad.ops.logprobs import CHUNK, Unembedding


def reverse_kl(
    hidden_ND: Tensor,
    student: Unembedding,
    teacher_hidden_NE: Tensor,
    teacher: Unembedding,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor, Tensor]:
    """KL(student || teacher) = sum_v p_v (log p_v - log q_v) at every place, in nats.

    The backward pass computes the logits of a chunk again. Only the divergence is differentiable, and only in what the
    student's logits are made of.

    Returns:
        KL, and of the student the logprobs of the targets and the entropy, each [N], float32 (float64).
    """
    assert len(student.weight_VD) == len(teacher.weight_VD), "both models have the same words"
    assert chunk > 0, "a chunk has at least one token"
    columns = [
        checkpoint(
            _chunk,
            hidden_ND[part],
            # Tensors whose gradients are wanted must be seen by the checkpoint.
            student.weight_VD,
            student.bias_V,
            student,
            teacher_hidden_NE[part],
            teacher,
            targets_N[part],
            temperature,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for part in (slice(start, start + chunk) for start in range(0, len(hidden_ND), chunk))
    ]
    kl_N, logprobs_N, entropy_N = (torch.cat(column) for column in zip(*columns, strict=True))
    return kl_N, logprobs_N, entropy_N


def _chunk(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    student: Unembedding,
    teacher_hidden_CE: Tensor,
    teacher: Unembedding,
    targets_C: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(torch.float32, hidden_CD.dtype)
    with torch.no_grad():
        teacher_CV = teacher.logits(teacher_hidden_CE.to(wide), temperature).log_softmax(1)
    logits_CV = student.scale * linear(
        hidden_CD.to(wide), weight_VD.to(wide), None if bias_V is None else bias_V.to(wide)
    )
    if student.softcap is not None:
        logits_CV = student.softcap * torch.tanh(logits_CV / student.softcap)
    log_p_CV = (logits_CV / temperature).log_softmax(1)
    p_CV = log_p_CV.exp()
    kl_C = (p_CV * (log_p_CV - teacher_CV)).sum(1)
    with torch.no_grad():
        return kl_C, log_p_CV.gather(1, targets_C[:, None])[:, 0], -(p_CV * log_p_CV).sum(1)
