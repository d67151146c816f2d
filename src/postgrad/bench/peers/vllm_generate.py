"""VLLM: `python vllm_generate.py JOB RESULT`, both JSON files.

Prefix caching is on, as by default, so the shared prompt is computed once; no logprobs are asked for.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main(job_file: str, result_file: str) -> None:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    on_cpu = job["device"] == "cpu"
    cores = sorted(os.sched_getaffinity(0))[: job["threads"]]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    from vllm import LLM, SamplingParams

    lengths = job["lengths"]
    engine = LLM(
        job["model"],
        dtype="float32" if on_cpu else "bfloat16",
        max_model_len=512,
        max_num_seqs=len(lengths),
        enforce_eager=on_cpu,
        seed=job["seed"],
    )
    conversation = [{"role": "user", "content": job["prompt"]}]

    def run(wanted: list[int]) -> tuple[dict[str, float], int]:
        params = [SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True) for n in wanted]
        began = time.perf_counter()
        outputs = engine.chat([conversation] * len(wanted), params, use_tqdm=False)
        seconds = time.perf_counter() - began
        made = [len(o.outputs[0].token_ids) for o in outputs]
        assert made == wanted, "a request stopped before its length"
        return {"seconds": seconds, "tokens": sum(made)}, len(outputs[0].prompt_token_ids)

    _, prompt_tokens = run([min(8, n) for n in lengths])
    result = {
        "steps": [run(lengths)[0] for _ in range(job["steps"])],
        "prompt_tokens": prompt_tokens,
        # What can be had is the memory of this process, and not of the engine's.
        "resident_bytes": None,
        "versions": {"vllm": version("vllm-cpu" if on_cpu else "vllm"), "torch": version("torch")},
    }
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
