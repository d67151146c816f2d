"""Plain transformers' `generate`: `python transformers_generate.py JOB RESULT`, both JSON files.

It has no way for a row to leave the batch, so requests of different lengths are sorted and cut into batches, each of
which runs to its longest. The best of a few batch sizes is found in the warm-up and used.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main(job_file: str, result_file: str) -> None:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    from transformers import AutoModelForCausalLM, AutoTokenizer

    on_cpu = job["device"] == "cpu"
    dtype = torch.float32 if on_cpu else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype).to(job["device"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": job["prompt"]}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"].to(job["device"])

    def batch(num: int, length: int) -> None:
        ids = prompt.repeat(num, 1)
        # The whole distribution, as on our side: cheaper for it than its usual top 50.
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=length,
            max_new_tokens=length,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
        )
        assert out.shape == (num, prompt.shape[1] + length), f"{out.shape} instead of {length} tokens each"

    def run(lengths: list[int], size: int) -> float:
        ordered = sorted(lengths)
        began = time.perf_counter()
        for start in range(0, len(ordered), size):
            part = ordered[start : start + size]
            batch(len(part), part[-1])
        if not on_cpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    lengths = job["lengths"]
    run([min(8, n) for n in lengths], len(lengths))
    size = len(lengths)
    if len(set(lengths)) > 1:
        size = min((len(lengths), len(lengths) // 2, len(lengths) // 4), key=lambda s: run(lengths, s))
    steps = [{"seconds": run(lengths, size), "tokens": sum(lengths)} for _ in range(job["steps"])]
    result = {
        "steps": steps,
        "batch_size": size,
        "prompt_tokens": prompt.shape[1],
        "gpu_bytes": torch.cuda.max_memory_allocated(),
        "versions": {name: version(name) for name in ("transformers", "torch")},
    }
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
