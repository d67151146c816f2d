"""The same question as `reward_pool.py`, put to a language model through the label store and the method "reward".

    python tools/reward_pool_lm.py --seed 0 --workspace pool-0

5,000 labels of twelve simulated raters, four of them careless, on 1,666 pairs; a reward model from them with every
rater weighing the same, and one with competence weights; both read 1,000 pairs of answers to prompts that they have not
seen, which careful raters have compared. Written for docs/experiments/reward-model.md; goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reward_pool import CARELESS, NUM_LABELS, OVERLAP, Answer, answers

from postgrad.db.engine import sqlite_url
from postgrad.evals.reward_health import HeldOut, certificate
from postgrad.feedback.raters import SimulatedRater, make_pool
from postgrad.feedback.records import Sample, Submission, content_id
from postgrad.feedback.store import LabelStore
from postgrad.methods.reward import Ranked, score
from postgrad.models.load import load_reward_model
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.types import Conversation, Example, Message, SamplingParams

ROUND = "pool"
NUM_FRESH = 1_000
RECIPE = """
method = "reward"
name = "{name}"
seed = {seed}
batch_tokens = 2048

[model]
name = "smollm2-135m"

[data]
max_tokens = 256
validation_share = 0.05

[[data.sources]]
format = "labels"

[reward]
epochs = {epochs}
prompts_per_step = 16
learning_rate = 5e-5
train_layers = 15
rater_weights = "{name}"

[certificate]
log_probability = false
"""
Pairs = Sequence[tuple[Answer, Answer]]


def store_labels(store: LabelStore, pairs: Pairs, pool: Sequence[SimulatedRater], dice: random.Random) -> None:
    """Prompts, answers and what the raters say of them, as a round would leave them."""
    store.add_round(ROUND, recipe="pool")
    store.add_raters("simulated", {rater.id: rater.params() for rater in pool})
    store.add_prompts([Example(_name(a.prompt), _asked(a.prompt)) for a, _ in pairs])
    ids = [store.add_samples([_sample(a), _sample(b)]) for a, b in pairs]
    asked = store.ask(ids, purpose="train", round_id=ROUND)
    submissions = []
    for name, (a, b) in zip(asked, pairs, strict=True):
        for rater in dice.sample(list(pool), OVERLAP):
            order = (0, 1) if dice.random() < 0.5 else (1, 0)
            said = rater.compare(name, (a.utility, b.utility), (a.num_words, b.num_words), order=order)
            submissions.append(Submission(said, order))
    store.answer(submissions)


def _name(prompt: str) -> str:
    return content_id(prompt)


def _asked(prompt: str) -> Conversation:
    return Conversation((Message("user", prompt),))


def _sample(answer: Answer) -> Sample:
    return Sample(
        _name(answer.prompt), ROUND, "reference", "", 0, SamplingParams(max_tokens=1), 0, answer.text, (), "stop"
    )


def examined(directory: Path, fresh: Pairs, judges: Sequence[SimulatedRater], dice: random.Random) -> dict[str, Any]:
    """How the reward model's differences stand to the declared ones and to careful raters' labels."""
    renderer = Renderer(load_tokenizer(directory))
    groups = [Ranked(0, tuple(_ids(renderer, answer) for answer in pair), ()) for pair in fresh]
    scores = score(load_reward_model(directory), groups, lambda done, all_: None)
    margins = np.array([first - second for first, second in scores])
    truth = np.array([a.utility - b.utility for a, b in fresh])
    held = []
    for i, (a, b) in enumerate(fresh):
        order = (0, 1) if dice.random() < 0.5 else (1, 0)
        rater = dice.choice(list(judges))
        said = rater.compare(str(i), (a.utility, b.utility), (a.num_words, b.num_words), order=order)
        better = next(said.pairs(), None)
        if better is not None:
            held.append(HeldOut(str(i), float(margins[i] * (1 if better == (0, 1) else -1)), 0))
    found = certificate(held, [], reward_std=float(margins.std()))
    decided = np.abs(truth) > 0.1
    return {
        "correlation": float(np.corrcoef(margins, truth)[0, 1]),
        "right": float((np.sign(margins) == np.sign(truth))[decided].mean()),
        **{key: found[key] for key in ("accuracy", "ece", "ece_calibrated", "temperature")},
    }


def _ids(renderer: Renderer, answer: Answer) -> tuple[int, ...]:
    whole = Conversation((*_asked(answer.prompt).messages, Message("assistant", answer.text)))
    return tuple(renderer.render(whole, train={1})[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workspace", type=Path, required=True)
    args = parser.parse_args()
    workspace: Path = args.workspace
    workspace.mkdir(parents=True, exist_ok=True)
    dice = random.Random(args.seed)
    pool = make_pool(12, seed=args.seed, temperature=0.5, careless_frac=CARELESS, prefix="train")
    drawn = answers(2 * NUM_LABELS // OVERLAP, dice, ("sft", "rm", "rl"))
    pairs = [(a, b) for a, b in drawn if a.text != b.text][: NUM_LABELS // OVERLAP]
    fresh = answers(NUM_FRESH, dice, ("heldout", "heldout_unseen"))
    with LabelStore(sqlite_url(workspace / "postgrad.db")) as store:
        if not any(store.comparisons(purpose="train", round_id=ROUND)):
            store_labels(store, pairs, pool, dice)
    judges = make_pool(12, seed=args.seed, temperature=0.5, careless_frac=0.0, prefix="held-out")
    for name in ("none", "competence"):
        recipe = workspace / f"{name}.toml"
        recipe.write_text(RECIPE.format(name=name, seed=args.seed, epochs=args.epochs), encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "postgrad", "run", str(recipe), "--workspace", str(workspace)], check=True
        )
        (directory,) = workspace.glob(f"rounds/*-{name}/stages/reward/model")
        print(name, json.dumps(examined(directory, fresh, judges, random.Random(args.seed))), flush=True)


if __name__ == "__main__":
    main()
