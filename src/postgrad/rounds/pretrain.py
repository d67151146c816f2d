"""Method "pretrain": text, a tokenizer from it, a base model from both, and how well its probabilities hold."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from postgrad.config.pretrain import PretrainRecipe
from postgrad.data.text import PARTS, Document, Part, read_documents
from postgrad.engine.local import LocalEngine
from postgrad.evals.calibration import clustered_calibration, ratio_interval
from postgrad.methods.pretrain import TokenStream, bits_per_byte, pretrain, read_next_tokens
from postgrad.models.fresh import fresh_policy
from postgrad.models.load import load_policy, save_policy
from postgrad.models.placement import place
from postgrad.models.policy import PolicyModel
from postgrad.rollout import request_seed
from postgrad.rounds.context import OpenBar, write_json, write_lines
from postgrad.rounds.frame import Work, open_round, run_stages
from postgrad.rounds.manifest import Manifest, Stage
from postgrad.run import RunDirectory, read_json_lines, sha256_file
from postgrad.text.bpe import encode_text, train_tokenizer
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.checkpoint import forget_checkpoints
from postgrad.trainer.local import LocalTrainer
from postgrad.types import GenerationRequest, SamplingParams

NUM_SAMPLES = 8
PROMPT_TOKENS = 24
SAMPLE_TOKENS = 64


@dataclass(frozen=True)
class _Run:
    recipe: PretrainRecipe
    manifest: Manifest
    source: Path
    bar: OpenBar

    @property
    def tokenizer(self) -> Path:
        return self.manifest.stage_directory("tokenizer") / "tokenizer"

    @property
    def policy(self) -> Path:
        return self.manifest.stage_directory("pretrain") / "policy"

    def seed(self, stage: str) -> int:
        return request_seed(self.recipe.seed, stage, 0)

    def texts(self) -> dict[Part, list[Document]]:
        documents = read_documents(self.source)
        return {part: [d for d in documents if d.part == part] for part in PARTS}

    def stream(self, part: Part) -> TokenStream:
        """What the tokenizer stage wrote."""
        directory = self.manifest.stage_directory("tokenizer")
        ids = load_file(directory / f"{part}.safetensors")["ids"]
        num_bytes = [row["bytes"] for row in read_json_lines(directory / f"{part}.jsonl")]
        ends = (ids == load_tokenizer(self.tokenizer).eos_token_id).nonzero().squeeze(1).tolist()
        return TokenStream(ids, ends, num_bytes)

    def fresh_model(self) -> PolicyModel:
        tokenizer = load_tokenizer(self.tokenizer)
        torch.manual_seed(self.seed("init"))
        return self.built(vocab_size=len(tokenizer), eos_id=int(tokenizer.eos_token_id))

    def built(self, *, vocab_size: int, eos_id: int) -> PolicyModel:
        cfg = self.recipe.model
        placement = place(cfg.device, cfg.dtype)
        return fresh_policy(cfg.config, vocab_size=vocab_size, eos_id=eos_id, placement=placement)


def run_pretrain(
    recipe: PretrainRecipe,
    *,
    workspace: Path,
    source: Path,
    bar: OpenBar,
    announce: Callable[[str], None],
) -> Manifest:
    """Run the recipe, or go on with its unfinished run.

    Args:
        recipe: resolved.
        workspace: one process at a time.
        source: file of the documents.
        bar: opens a progress bar under a title, or a view of a run's metrics.
        announce: told the name of each stage as it begins.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    shape = json.dumps(recipe.model.config, sort_keys=True)
    model = {"name": f"fresh {recipe.model.config.get('model_type')}", "sha256": _sha256(shape)}
    with open_round(recipe, workspace=workspace, model=model) as manifest:
        run = _Run(recipe, manifest, source, bar)
        work = [
            Work("text", (), lambda s: _text_stage(run, s)),
            Work("tokenizer", ("text",), lambda s: _tokenizer_stage(run, s)),
            Work("pretrain", ("tokenizer",), lambda s: _pretrain_stage(run, s)),
            Work("evaluate", ("tokenizer", "pretrain"), lambda s: _evaluate_stage(run, s)),
        ]
        run_stages(manifest, work, inputs={"source": sha256_file(source)}, announce=announce)
    return manifest


def _text_stage(run: _Run, stage: Stage) -> None:
    """Who is in which part; and that the model can be built at all, before anything takes long."""
    run.built(vocab_size=run.recipe.tokenizer.vocab_size, eos_id=0)
    texts = run.texts()
    write_lines(
        stage.directory / "documents.jsonl",
        ({"id": d.id, "split": part, "sha256": _sha256(d.text)} for part in PARTS for d in texts[part]),
    )
    stage.summary = {f"{part}_documents": len(texts[part]) for part in PARTS}
    stage.summary |= {f"{part}_bytes": sum(len(d.text.encode("utf-8")) for d in texts[part]) for part in PARTS}


def _tokenizer_stage(run: _Run, stage: Stage) -> None:
    """Learned from the training part alone; then both parts as streams of tokens."""
    texts = run.texts()
    run.bar("learning the tokens")
    tokenizer = train_tokenizer((d.text for d in texts["train"]), run.recipe.tokenizer.vocab_size)
    eos = int(tokenizer.eos_token_id)
    progress = run.bar("encoding")
    done, total = 0, sum(map(len, texts.values()))
    summary: dict[str, Any] = {"vocabulary": len(tokenizer)}
    for part in PARTS:
        ids = [eos]
        for document in texts[part]:
            ids += [*encode_text(tokenizer, document.text), eos]
            done += 1
            progress(done, total)
        save_file({"ids": torch.tensor(ids, dtype=torch.int32)}, stage.directory / f"{part}.safetensors")
        sizes = [len(d.text.encode("utf-8")) for d in texts[part]]
        rows = ({"id": d.id, "bytes": size} for d, size in zip(texts[part], sizes, strict=True))
        write_lines(stage.directory / f"{part}.jsonl", rows)
        summary[f"{part}_tokens"] = len(ids) - 1
        summary[f"{part}_bytes_per_token"] = sum(sizes) / (len(ids) - 1)
    tokenizer.save_pretrained(stage.directory / "tokenizer")
    stage.summary = summary


def _pretrain_stage(run: _Run, stage: Stage) -> None:
    model = run.fresh_model()
    directory = RunDirectory(stage.directory, run.seed("pretrain"))
    trainer = LocalTrainer(model, batch_tokens=run.recipe.batch_tokens, dump=stage.directory / "diverged")
    pretrain(
        trainer,
        run.stream("train"),
        run.stream("validation"),
        run.recipe.pretrain,
        directory,
        run.bar("reading", directory),
        context=model.context,
    )
    save_policy(model, run.policy, tokenizer_from=run.tokenizer)
    forget_checkpoints(directory)
    rows = directory.read_metrics()
    stage.add_tokens(trained=trainer.trained_tokens)
    stage.policy_version = trainer.version
    stage.summary = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": len(rows),
        "loss_first": rows[0]["loss/nll"],
        "loss_last": rows[-1]["loss/nll"],
    }


def _evaluate_stage(run: _Run, stage: Stage) -> None:
    """Bits a byte and calibration on the validation part, simple models of it to compare with, and samples."""
    # In float32 whatever it was trained in: rounded logits would be a calibration error of their own.
    model = load_policy(run.policy, placement=place(run.recipe.model.device, "float32"))
    validation = run.stream("validation")
    said = read_next_tokens(model, validation, run.bar("reading the validation text"))
    num_bytes = np.array(validation.num_bytes, dtype=np.float64)
    low, high = ratio_interval(said.nats[:, None] / math.log(2), num_bytes)
    confidence = clustered_calibration(said.confidence, said.num_tokens)
    probability = clustered_calibration(said.probability, said.num_tokens)
    texts = [d.text for d in run.texts()["validation"]]
    summary = {
        "bits_per_byte": bits_per_byte(float(said.nats.sum()), int(num_bytes.sum())),
        "bits_per_byte_low": low,
        "bits_per_byte_high": high,
        "unigram_bits_per_byte": _unigram_bits_per_byte(run.stream("train"), validation),
        "gzip_bits_per_byte": 8 * len(gzip.compress("".join(texts).encode("utf-8"))) / float(num_bytes.sum()),
        "nats_per_token": float(said.nats.sum() / said.num_tokens.sum()),
        "accuracy": float(said.confidence[:, :, 2].sum() / said.num_tokens.sum()),
        **confidence,
        **{f"all_{key}": value for key, value in probability.items()},
    }
    write_json(stage.directory / "evaluation.json", summary)
    samples = _samples(run, model, validation)
    write_lines(stage.directory / "samples.jsonl", samples)
    stage.add_tokens(scored=len(validation.ids) - 1, generated=sum(row["tokens"] for row in samples))
    stage.summary = summary


def _unigram_bits_per_byte(training: TokenStream, validation: TokenStream) -> float:
    """A model that knows how frequent each token is and nothing else; every count begins at one (Laplace)."""
    size = int(max(training.ids.max(), validation.ids.max())) + 1
    counts = training.ids[1:].long().bincount(minlength=size).double() + 1
    logp = (counts / counts.sum()).log()
    return bits_per_byte(-float(logp[validation.ids[1:].long()].sum()), sum(validation.num_bytes))


def _samples(run: _Run, model: PolicyModel, validation: TokenStream) -> list[dict[str, Any]]:
    """How the model goes on from the beginnings of some validation documents, at temperature 1."""
    renderer = Renderer(load_tokenizer(run.policy))
    length = min(1 + PROMPT_TOKENS, model.context // 2)
    prompts = [
        validation.ids[start : min(start + length, stop)].tolist()
        for start, stop in _first(list(pairwise(validation.ends)))
    ]
    params = SamplingParams(max_tokens=min(SAMPLE_TOKENS, model.context - length), temperature=1.0)
    seed = run.seed("samples")
    requests = [GenerationRequest(tuple(ids), params, request_seed(seed, str(i), 0)) for i, ids in enumerate(prompts)]
    engine = LocalEngine(model, stop_ids=renderer.stop_ids, decode=renderer.decode)
    return [
        {
            "prompt": renderer.decode(ids),
            "text": completion.text,
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
        }
        for ids, completion in zip(prompts, engine.sample(requests), strict=True)
    ]


def _first(documents: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """`NUM_SAMPLES` of them, evenly spaced."""
    return [documents[i * len(documents) // NUM_SAMPLES] for i in range(min(NUM_SAMPLES, len(documents)))]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
