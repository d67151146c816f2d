"""What the engine says of its own tokens beside what the trainer reads: sums in float32 alone would be 6e-6 apart."""

import pytest
import torch
from small import random_model

from postgrad.data.batch import collate
from postgrad.engine.local import LocalEngine
from postgrad.models.linear import LoraLinear, use_fast_products
from postgrad.models.load import add_adapter
from postgrad.models.policy import PolicyModel
from postgrad.trainer.local import LocalTrainer
from postgrad.types import GenerationRequest, SamplingParams


def adapted():
    """Factors wide enough for their products' bits to depend on the number of rows."""
    lm = random_model(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3).lm
    model = PolicyModel(lm, adapter=add_adapter(lm, 16))
    use_fast_products(lm)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    assert any(isinstance(m, LoraLinear) for m in lm.modules())
    return model


@pytest.mark.parametrize("make", [lambda: random_model(num_hidden_layers=6, hidden_size=64), adapted])
def test_logprobs_are_the_trainers_but_for_the_last_bits(make):
    model = make()
    engine = LocalEngine(model, stop_ids=(), decode=str)
    prompts = [tuple(range(1, 1 + n)) for n in (5, 20, 37) for _ in range(8)]
    requests = [GenerationRequest(p, SamplingParams(max_tokens=40), seed=i) for i, p in enumerate(prompts)]
    answers = engine.sample(requests)
    batch = collate(
        [[*p, *a.token_ids] for p, a in zip(prompts, answers, strict=True)],
        [[False] * len(p) + [True] * len(a.token_ids) for p, a in zip(prompts, answers, strict=True)],
    )
    read = LocalTrainer(model, batch_tokens=4096).evaluate(batch).logprobs[batch.loss_mask]
    said = torch.tensor([logprob for a in answers for logprob in a.logprobs])
    assert float((said - read).abs().max()) < 3e-6
