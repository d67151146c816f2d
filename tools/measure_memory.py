"""Estimated against measured peak memory of a training step, as a Markdown table.

    python tools/measure_memory.py MODEL_DIRECTORY [TOKENS ...]

Every row is a process of its own, started from one that has not imported torch: Linux hands the peak of the parent on.
Each takes a step of sixteen tokens, then two micro-batches of TOKENS in sequences of 128, of which every token is
trained, and a second step.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import product
from pathlib import Path

LENGTH = 128


def train(directory: Path, tokens: int, lora_rank: int, checkpointing: bool) -> dict[str, int]:
    """The step, and what was estimated for it before the model was loaded."""
    import torch

    from postgrad.data.batch import Batch, collate
    from postgrad.models.attainable import resident_bytes
    from postgrad.models.footprint import blank_policy, count_sizes, learning
    from postgrad.models.load import load_policy, read_config
    from postgrad.ops.losses import nll_loss
    from postgrad.protocols import Loss
    from postgrad.trainer.local import LocalTrainer

    sizes = count_sizes(blank_policy(read_config(directory), lora_rank=lora_rank))
    estimate = learning("", resident_bytes(), sizes, tokens, checkpointing=checkpointing)
    model = load_policy(directory, lora_rank=lora_rank, gradient_checkpointing=checkpointing)
    trainer = LocalTrainer(model, batch_tokens=tokens)

    def batch(rows: int, length: int) -> Batch:
        return collate(torch.randint(sizes.words, (rows, length)).tolist(), [[True] * length] * rows)

    for micro_batches in ([batch(2, 8)], [batch(tokens // LENGTH, LENGTH)] * 2):
        for one in micro_batches:
            trainer.forward_backward(one, lambda b, out: Loss(*nll_loss(out.logprobs, b.loss_mask)))
        trainer.optim_step(1e-4)
    return {"estimated": estimate.peak}


def measure(directory: str, tokens: int, lora_rank: int, checkpointing: bool) -> tuple[int, int]:
    """Estimated and measured bytes, from a process of their own."""
    job = json.dumps({"tokens": tokens, "lora_rank": lora_rank, "checkpointing": checkpointing})
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    child = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, __file__, directory, job, str(writer)])
    os.close(writer)
    _, status, usage = os.wait4(child, 0)
    assert status == 0, "the measured process failed"
    with os.fdopen(reader) as answer:
        estimated = json.load(answer)["estimated"]
    return estimated, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(directory: str, *arguments: str) -> None:
    if arguments and arguments[0].startswith("{"):
        with os.fdopen(int(arguments[1]), "w") as answer:
            json.dump(train(Path(directory), **json.loads(arguments[0])), answer)
        return
    print("| trained | checkpointing | batch_tokens | estimated GB | measured GB | difference |")
    print("|---|---|---|---|---|---|")
    for lora_rank, checkpointing, tokens in product((0, 16), (False, True), map(int, arguments or ("512", "2048"))):
        estimated, measured = measure(directory, tokens, lora_rank, checkpointing)
        what = f"LoRA, rank {lora_rank}" if lora_rank else "all weights"
        sizes = f"{estimated / 1e9:.2f} | {measured / 1e9:.2f} | {estimated / measured - 1:+.0%}"
        print(f"| {what} | {'yes' if checkpointing else 'no'} | {tokens} | {sizes} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
