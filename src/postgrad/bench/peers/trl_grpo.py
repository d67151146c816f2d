"""TRL's GRPO: `python trl_grpo.py JOB RESULT`, both JSON files. Everything that the job does not name is TRL's default.

A device holds a group at a time and gradients are accumulated over the groups, so that one optimizer step sees as many
answers as ours does. With `beta` above zero TRL evaluates the reference model too.
"""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main(job_file: str, result_file: str) -> None:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(job["threads"])
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(-time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[-1] += time.perf_counter()

    target = job["target_characters"]

    def length_reward(completions: Any, **kwargs: Any) -> list[float]:
        return [-abs(len(answer[0]["content"]) - target) / target for answer in completions]

    on_cpu = job["device"] == "cpu"
    total = job["warmup"] + job["steps"]
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job["group_size"],
        num_generations=job["group_size"],
        gradient_accumulation_steps=job["prompts_per_step"],
        max_completion_length=job["max_tokens"],
        max_steps=total,
        beta=job["kl_coef"],
        learning_rate=job["learning_rate"],
        temperature=1.0,
        shuffle_dataset=False,
        use_cpu=on_cpu,
        bf16=not on_cpu,
        fp16=False,
        seed=job["seed"],
        logging_steps=1,
        report_to=[],
        save_strategy="no",
    )
    adapter = LoraConfig(r=job["lora_rank"], lora_alpha=2 * job["lora_rank"], target_modules="all-linear")
    trainer = GRPOTrainer(
        model=job["model"],
        reward_funcs=length_reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": p}]} for p in job["prompts"]]),
        callbacks=[Clock()],
        peft_config=adapter if job["lora_rank"] else None,
    )
    trainer.train()
    answers = job["group_size"] * job["prompts_per_step"]
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    steps = [{"seconds": s, "tokens": round(n * answers)} for s, n in zip(seconds, lengths, strict=True)]
    assert len(steps) == total, f"{len(steps)} of {total} steps were logged"
    versions = {name: version(name) for name in ("trl", "transformers", "torch", "peft")}
    result = {"steps": steps[job["warmup"] :], "gpu_bytes": torch.cuda.max_memory_allocated(), "versions": versions}
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
