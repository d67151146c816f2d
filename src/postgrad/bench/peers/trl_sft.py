"""TRL's SFT: `python trl_sft.py JOB RESULT`, both JSON files. The rows come in file order, as on our side.

Packing makes rows of `max_length` out of conversations; a step then takes one such row, which holds about as many
tokens as a step of eight conversations does.
"""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any


def main(job_file: str, result_file: str) -> None:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(job["threads"])
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(-time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[-1] += time.perf_counter()

    on_cpu = job["device"] == "cpu"
    total = job["warmup"] + job["steps"]
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=1 if job["packing"] else job["batch_size"],
        gradient_accumulation_steps=1,
        max_length=job["max_length"],
        packing=job["packing"],
        max_steps=total,
        learning_rate=job["learning_rate"],
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        use_cpu=on_cpu,
        bf16=not on_cpu,
        fp16=False,
        seed=job["seed"],
        logging_steps=1,
        report_to=[],
        save_strategy="no",
    )
    trainer = SFTTrainer(
        model=job["model"],
        args=config,
        train_dataset=Dataset.from_list([{"messages": row} for row in job["rows"]]),
        callbacks=[Clock()],
    )
    trainer.train()
    seen = [0, *(row["num_tokens"] for row in trainer.state.log_history if "num_tokens" in row)]
    steps = [{"seconds": s, "tokens": round(b - a)} for s, (a, b) in zip(seconds, pairwise(seen), strict=True)]
    assert len(steps) >= total, f"{len(steps)} of {total} steps were logged"
    versions = {name: version(name) for name in ("trl", "transformers", "torch")}
    result = {
        "steps": steps[job["warmup"] : total],
        "gpu_bytes": torch.cuda.max_memory_allocated(),
        "versions": versions,
    }
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
