"""A comparison of methods small enough for a test, on the rows of `tiny_round`."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_round import FIRST_STAGES, NO_BAR, make_rows

METHODS = """
[[methods]]
name = "edits-sft"
edits = { learning_rate = 3e-3 }

[[methods]]
name = "best"
best = { learning_rate = 3e-3 }

[[methods]]
name = "dpo"
preference = { algorithm = "dpo", learning_rate = 1e-3 }

[[methods]]
name = "kto"
preference = { algorithm = "kto", learning_rate = 1e-3 }

[[methods]]
name = "ppo"
rl = { algorithm = "ppo", learning_rate = 1e-3, epochs = 1, minibatches = 2 }

[[methods]]
name = "grpo"
rl = { algorithm = "grpo", learning_rate = 1e-3, epochs = 1, minibatches = 1 }

[[methods]]
name = "distill"
distill = { learning_rate = 1e-3 }
teacher = { system = "zzzz zzzz" }
"""
RECIPE = (
    """
method = "compare"
name = "tiny-compare"
seed = 7
batch_tokens = 2048

[model]
name = {model}

"""
    + FIRST_STAGES
    + """
[budget]
passes = 1
prompts_per_step = 4
max_tokens = 60
{methods}
[arena]
num_prompts = 10
num_raters = 3
resamples = 50
"""
)


def write_comparison(folder: Path, model: Path, *, methods: str = METHODS) -> Path:
    """`folder`/compare.toml, with its rows beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows()), encoding="utf-8")
    recipe = folder / "compare.toml"
    recipe.write_text(RECIPE.format(model=json.dumps(str(model)), bar=NO_BAR, methods=methods))
    return recipe
