"""Models small enough to check by plain transformers, and batches of uneven sequences to check them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config, Qwen3Config

from postgrad.data.batch import Batch, collate
from postgrad.models.policy import PolicyModel

VOCABULARY = 48
CONTEXT = 128
WINDOW = 8
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_SHAPE, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**_SHAPE, head_dim=8, tie_word_embeddings=True),
    "gemma3": lambda: Gemma3TextConfig(
        **_SHAPE,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
}
ARCHITECTURES = tuple(CONFIGS)


def random_model(
    architecture: str = "llama", *, seed: int = 0, heads: tuple[str, ...] = (), **changes: Any
) -> PolicyModel:
    """Random weights, norms and biases included, in evaluation mode."""
    config = CONFIGS[architecture]()
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PolicyModel(AutoModelForCausalLM.from_config(config), heads=heads)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 and not name.startswith("heads."):
                    parameter.add_(0.1 * torch.randn_like(parameter))
                if name == "heads.value.weight":
                    parameter.normal_(std=0.2)
    return model.eval()


def tokens(num: int, *, seed: int, vocabulary: int = VOCABULARY) -> list[int]:
    return torch.randint(vocabulary, (num,), generator=torch.Generator().manual_seed(seed)).tolist()


def uneven_batch(shapes: Sequence[tuple[int, int]] = ((3, 5), (7, 1), (1, 9), (4, 4)), *, seed: int = 0) -> Batch:
    """Sequences of (prompt, answer) tokens with the answers trained."""
    ids = [tokens(prompt + answer, seed=1000 * seed + i) for i, (prompt, answer) in enumerate(shapes)]
    masks = [[False] * prompt + [True] * answer for prompt, answer in shapes]
    return collate(ids, masks)


def siblings_batch(*, prompt: int = 6, answers: Sequence[int] = (3, 5, 2), groups: int = 2, seed: int = 0) -> Batch:
    """Groups of answers of different lengths to one prompt each."""
    ids, masks, group_ids = [], [], []
    for group in range(groups):
        head = tokens(prompt + group, seed=100 * seed + group)
        for i, answer in enumerate(answers):
            ids.append(head + tokens(answer, seed=10_000 + 100 * group + i + seed))
            masks.append([False] * len(head) + [True] * answer)
            group_ids.append(group)
    return collate(ids, masks).with_(group_ids=torch.tensor(group_ids))


@torch.no_grad()
def plain_logprobs(lm: Any, ids: Sequence[int], *, temperature: float = 1.0) -> torch.Tensor:
    """[T] log p(token t | tokens < t) by transformers alone; zero for the first token."""
    logp = (lm(torch.tensor([list(ids)])).logits[0] / temperature).log_softmax(-1)
    following = torch.tensor(list(ids))[1:, None]
    return torch.cat([torch.zeros(1), logp[:-1].gather(1, following)[:, 0]])


def plain_batch_logprobs(lm: Any, batch: Batch, *, temperature: float = 1.0) -> torch.Tensor:
    """As `plain_logprobs` for every sequence by itself, [B, T], zero outside the loss mask."""
    found = torch.zeros(batch.input_ids.shape)
    for i, length in enumerate(batch.lengths.tolist()):
        found[i, :length] = plain_logprobs(lm, batch.input_ids[i, :length].tolist(), temperature=temperature)
    return found * batch.loss_mask


def state(model: PolicyModel) -> dict[str, torch.Tensor]:
    """A copy of every tensor."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not the same bit for bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
