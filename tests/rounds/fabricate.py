"""A small round on disk, made of numbers alone, as the stages would leave it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from postgrad.rounds.manifest import STAGES, Manifest, find_or_create_round
from postgrad.run import RunDirectory

VERSIONS = {"postgrad": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.16.0"}
MODEL = {"name": "smollm2-135m", "sha256": "3f8a" * 16}
PLAYERS = ("initial", "sft", "rl")
SUMMARIES: Mapping[str, dict[str, Any]] = {
    "prompts": {"sft": 512, "rm": 400, "rl": 600, "heldout": 96, "heldout_unseen": 48},
    "sft": {"loss_first": 2.4142, "loss_last": 1.7321, "examples": 512},
    "samples": {"num": 800},
    "labels": {"num_comparisons": 400, "num_preferences": 1234, "tie_frac": 0.0875, "rater_agreement": 0.643},
    "reward": {
        "accuracy": 0.7125, "accuracy_low": 0.6417, "accuracy_high": 0.7761, "num_pairs": 160, "brier": 0.1913,
        "ece": 0.0421, "temperature": 1.18, "best_baseline": "shorter", "best_baseline_accuracy": 0.5532,
        "calibration": [
            {"predicted": 0.55, "observed": 0.52, "n": 48}, {"predicted": 0.65, "observed": 0.69, "n": 41},
            {"predicted": 0.75, "observed": 0.71, "n": 37}, {"predicted": 0.85, "observed": 0.88, "n": 22},
            {"predicted": 0.95, "observed": 0.92, "n": 12}, {"predicted": 0.99, "observed": 0.0, "n": 0},
        ],
    },
    "rl": {"steps": 24, "reward_first": -0.412, "reward_last": 1.187, "kl_last": 4.31, "stopped": None},
    "arena": {},
    "gate": {},
}  # fmt: skip
COST: Mapping[str, tuple[int, int, int]] = {
    "sft": (0, 41_220, 0), "samples": (22_480, 0, 0), "reward": (0, 61_003, 12_400), "rl": (58_330, 233_320, 116_660),
    "arena": (9_412, 0, 0),
}  # fmt: skip
ARENA: Mapping[str, Any] = {
    "players": {
        "initial": {"elo": 951.2, "elo_low": 931.0, "elo_high": 970.4, "mean_tokens": 33.41, "truncated_frac": 0.625},
        "sft": {"elo": 992.7, "elo_low": 975.1, "elo_high": 1011.9, "mean_tokens": 24.08, "truncated_frac": 0.2917},
        "rl": {"elo": 1056.1, "elo_low": 1034.6, "elo_high": 1079.3, "mean_tokens": 17.5, "truncated_frac": 0.0417},
    },
    "pairs": [
        {"a": "rl", "b": "initial", "wins": 171, "ties": 31, "losses": 86, "win_rate": 0.6476, "low": 0.5903,
         "high": 0.7031, "num_prompts": 144, "equal_length_win_rate": 0.661, "equal_length_low": 0.59,
         "equal_length_high": 0.72},
        {"a": "rl", "b": "sft", "wins": 142, "ties": 40, "losses": 106, "win_rate": 0.5625, "low": 0.5052,
         "high": 0.6181, "num_prompts": 144},
        {"a": "sft", "b": "initial", "wins": 146, "ties": 35, "losses": 107, "win_rate": 0.5677, "low": 0.4948,
         "high": 0.6233, "num_prompts": 144},
    ],
    "measures": {
        player: {
            "constraints_met": {"mean": 0.31 + 0.2 * i, "low": 0.25 + 0.2 * i, "high": 0.37 + 0.2 * i},
            "ends_properly": {"mean": 0.38 + 0.28 * i, "low": 0.3 + 0.28 * i, "high": 0.44 + 0.28 * i},
            "repetition": {"mean": 0.0312 - 0.01 * i, "low": 0.02 - 0.01 * i, "high": 0.05 - 0.01 * i},
            "reference_f1": {"mean": 0.211 + 0.02 * i, "low": 0.19 + 0.02 * i, "high": 0.23 + 0.02 * i},
            "question_echo": {"mean": 0.1042, "low": 0.08, "high": 0.13},
        }
        for i, player in enumerate(PLAYERS)
    },
    "unrewarded": ["reference_f1", "question_echo"],
    "deltas": [
        {"measure": "constraints_met", "a": "rl", "b": "initial", "delta": 0.4, "low": 0.31, "high": 0.49},
        {"measure": "ends_properly", "a": "rl", "b": "initial", "delta": 0.56, "low": 0.47, "high": 0.65},
        {"measure": "repetition", "a": "rl", "b": "initial", "delta": -0.02, "low": -0.041, "high": -0.002},
        {"measure": "reference_f1", "a": "rl", "b": "initial", "delta": 0.0401, "low": 0.0123, "high": 0.0682},
        {"measure": "question_echo", "a": "rl", "b": "initial", "delta": 0.0, "low": -0.031, "high": 0.029},
    ],
}  # fmt: skip


def _estimate(value: float, num: int = 160, reach: float = 0.07) -> dict[str, Any]:
    return {"value": value, "low": value - reach, "high": value + reach, "num": num}


CERTIFICATE: Mapping[str, Any] = {
    **SUMMARIES["reward"],
    "model_sha256": "c0de" * 16,
    "below_bar": [],
    "ece_calibrated": 0.0312,
    "brier_calibrated": 0.188,
    "calibration_calibrated": SUMMARIES["reward"]["calibration"][:5],
    "baselines": [
        {"name": "shorter", "accuracy": _estimate(0.5532), "gain": _estimate(0.1593)},
        {"name": "longer", "accuracy": _estimate(0.4468), "gain": _estimate(0.2657)},
    ],
    "by": {
        "margin": [{"name": f"{b}.00 to {b + 1}.00", **_estimate(0.55 + 0.1 * b, 32, 0.16)} for b in range(4)],
        "length": [{"name": n, **_estimate(v, 53, 0.1)} for n, v in (("the longer is", 0.6), ("within", 0.7))],
        "strength": [{"name": "clearly better", **_estimate(0.7125)}],
        "domain": [],
        "rater": [{"name": f"train-0-00{i}", **_estimate(0.8 - 0.1 * i, 40, 0.12)} for i in range(4)],
    },
    "probes": [
        {"kind": kind, "gain": _estimate(gain, 24, 0.2), "raised": _estimate(0.5, 24, 0.19)}
        for kind, gain in (("position", 0.0), ("length", 0.41), ("format", -0.8), ("sycophancy", 0.9))
    ],
    "reward_std": 1.02,
    "disagreement": {
        "held_out": 0.21, "samples": 0.34, "num_samples": 24,
        "accuracy_low_spread": {"name": "agree", **_estimate(0.8)},
        "accuracy_high_spread": {"name": "differ", **_estimate(0.62)},
    },
    "rater_agreement": _estimate(0.74, 60),
}  # fmt: skip
GATE: Mapping[str, Any] = {
    "verdict": "pass", "candidate": "rl", "incumbent": "initial",
    "improvement": {"win_rate": 0.6476, "low": 0.5903, "high": 0.7031},
    "guards": [
        {"name": "length_ratio", "value": 0.524, "limit": 1.5, "ok": True,
         "explanation": "Mean answer length against the incumbent's."},
        {"name": "repetition", "value": 0.0112, "limit": 0.2, "ok": True, "explanation": "Share of repeated trigrams."},
        {"name": "truncated_frac", "value": 0.0417, "limit": 0.5, "ok": True,
         "explanation": "Answers cut at the token limit."},
        {"name": "kl", "value": 4.31, "limit": 20.0, "ok": True, "explanation": "Nats an answer from the reference."},
    ],
    "reasons": ["The whole interval of the improvement lies above 50%.", "No guard tripped."],
    "evidence": {"arena": "5e1f" * 16, "answers": "77ab" * 16}, "decided_at": "2026-03-02T10:15:00+00:00",
}  # fmt: skip
TOPICS = ("tides", "iron", "the Nile", "photosynthesis", "chess", "a sonnet", "copper", "Saturn")


def answer_rows(num: int = 30) -> list[dict[str, Any]]:
    rows = []
    for i in range(num):
        topic = TOPICS[i % len(TOPICS)]
        texts = {
            "initial": f"Well, {topic} is a really interesting thing to ask about, and there are many points to make, "
            "of which the first is that",
            "sft": f"People have known {topic} for a long time, and it matters to many of them, mostly in the north.",
            "rl": f"Answer: {topic} is best explained in one short sentence, number {i}.",
        }
        rows.append(
            {
                "prompt_id": f"dolly-{i}",
                "prompt": f"What should a child know about {topic}? Answer in one sentence.",
                "constraints": [{"kind": "one_sentence"}, {"kind": "max_words", "value": 12}][: i % 3],
                "reference": f"A person wrote this about {topic}.",
                "answers": {
                    player: {"text": text, "tokens": len(text) // 4, "finish_reason": "length" if p == 0 else "stop"}
                    for p, (player, text) in enumerate(texts.items())
                },
                "utility": {"initial": -0.5 - 0.01 * i, "sft": 0.7, "rl": 0.7 if i % 5 == 0 else 2.25},
            }
        )
    return rows


def _write_metrics(directory: Path, stage: str) -> None:
    run = RunDirectory(directory)
    for step in range(1, {"sft": 40, "reward": 25, "rl": 24}[stage] + 1):
        fade, wave = math.exp(-step / 9), 0.06 * math.sin(step * 1.7)
        run.write_metrics(
            step,
            {
                "sft": {"loss/nll": 1.7 + 0.8 * fade + wave, "optim/grad_norm": 1.2 + fade + 3 * wave},
                "reward": {"loss/bradley_terry": 0.55 + 0.14 * fade + wave / 2, "reward/accuracy": 0.72 - 0.2 * fade},
                "rl": {
                    "reward/mean": 1.2 - 1.7 * fade + wave, "policy/kl_ref": 4.4 * (1 - fade) + wave,
                    "policy/entropy": 1.4 + 1.3 * fade + wave, "policy/clip_frac": 0.12 + wave,
                    "rollout/truncated_frac": 0.05 + 0.6 * fade, "rollout/completion_tokens": 17 + 16 * fade + 5 * wave,
                    "value/explained_variance": float("nan") if step == 1 else 0.6 - 1.4 * fade,
                    "optim/grad_norm": 2.1 + wave, "sampler/logprob_diff_max": 9.5e-7,
                },
            }[stage],
        )  # fmt: skip


def _recipe(seed: int, steps: int) -> dict[str, Any]:
    rl = {"algorithm": "ppo", "steps": steps, "kl_coef": 0.05}
    return {"method": "round", "name": "quickstart", "seed": seed, "rl": rl}


def fabricate_round(
    workspace: Path,
    *,
    until: str = "gate",
    seed: int = 0,
    steps: int = 24,
    answers: Sequence[Mapping[str, Any]] | None = None,
    gate: Mapping[str, Any] = GATE,
    summaries: Mapping[str, dict[str, Any]] = SUMMARIES,
    metrics: bool = True,
) -> Manifest:
    """A round whose stages are done up to and including `until`; without `metrics` it has no curves."""
    manifest = find_or_create_round(workspace, _recipe(seed, steps), versions=VERSIONS, model=MODEL)
    for number, name in enumerate(STAGES[: STAGES.index(until) + 1]):
        with manifest.stage(name, inputs={"earlier": manifest.digest(STAGES[number - 1])} if number else {}) as stage:
            if name in ("sft", "reward", "rl") and metrics:
                _write_metrics(stage.directory, name)
            if name in ("sft", "rl"):
                stage.policy_version = {"sft": 1, "rl": 25}[name]
            if name == "reward":
                (stage.directory / "model").mkdir()
                (stage.directory / "model" / "certificate.json").write_text(json.dumps(CERTIFICATE))
            if name == "arena":
                rows = answer_rows() if answers is None else answers
                (stage.directory / "arena.json").write_text(json.dumps(ARENA))
                (stage.directory / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            if name == "gate":
                (stage.directory / "gate.json").write_text(json.dumps(gate))
            stage.summary = summaries[name]
            generated, trained, scored = COST.get(name, (0, 0, 0))
            stage.add_tokens(generated=generated, trained=trained, scored=scored)
            stage.record.seconds = {"sft": 93.4, "samples": 71.0, "reward": 118.2, "rl": 402.7, "arena": 66.1}.get(
                name, 2.5
            )
            stage.record.peak_memory_bytes = 1_536_000_000 + 311_000_000 * number
    if until == "gate":
        manifest.finish()
    return manifest
