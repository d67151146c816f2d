"""The limit examples and what they are examined by: whole, disjoint, and in no evaluation that others use."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from test_quickstart_data import builder

from postgrad.config.load import load_recipe
from postgrad.data.readers import read_examples
from postgrad.evals.languages import read_tasks
from postgrad.evals.limits import read_pairs
from postgrad.recipes import languages_eval_path, limits_data_path, limits_eval_path, quickstart_rows, recipe_path

trained = [json.loads(line) for line in limits_data_path().read_text(encoding="utf-8").splitlines()]
pairs = read_pairs(limits_eval_path())
tasks = read_tasks(languages_eval_path())
RUN = 5
"""Words in a row that a training and an evaluation prompt may not share."""


def runs(text: str) -> set[tuple[str, ...]]:
    words = builder.normalise(text).split()
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def test_thirty_two_limits_of_eight_capabilities_and_three_times_as_many_look_alikes_can_be_trained_on() -> None:
    assert len(read_examples(limits_data_path())) == 128
    counts = Counter((row["split"], row["capability"]) for row in trained)
    assert len(counts) == 16
    assert {split: num for (split, _), num in counts.items()} == {"limits": 4, "look-alikes": 12}
    assert set(counts.values()) == {4, 12}
    assert len({row["id"] for row in trained}) == len({row["prompt"] for row in trained}) == 128
    assert load_recipe(recipe_path("limits"), ()).method == "sft"


def test_sixty_pairs_of_ten_capabilities_none_of_them_trained() -> None:
    counts = Counter(pair.capability for pair in pairs)
    assert (len(counts), set(counts.values())) == (10, {6})
    assert counts.keys() & {row["capability"] for row in trained} == set()
    texts = [text for pair in pairs for text in (pair.beyond, pair.within)]
    assert len(set(texts)) == 120


def test_no_evaluation_prompt_is_trained_on_by_the_recipe() -> None:
    asked = [text for pair in pairs for text in (pair.beyond, pair.within)]
    asked += [task.prompts["en"] for task in tasks]
    demonstrations = [builder.base_instruction(row) for row in quickstart_rows()]
    own = [row["prompt"] for row in trained]
    learned = {builder.normalise(text) for text in (*own, *demonstrations)}
    assert [text for text in asked if builder.normalise(text) in learned] == []
    learned_runs = {run for text in own for run in runs(text)}
    assert learned_runs
    assert [text for text in asked if runs(text) & learned_runs] == []
    assert runs("Play some jazz for me now") & learned_runs, "what is shared is found"


def test_no_limit_example_is_a_prompt_of_a_public_evaluation_set() -> None:
    packed = (Path(__file__).parent / "data/eval_public_prompts.bin").read_bytes()
    public = {packed[i : i + 8] for i in range(0, len(packed), 8)}
    assert builder.fingerprint("Why do veins appear blue?") in public
    assert [row["prompt"] for row in trained if builder.fingerprint(row["prompt"]) in public] == []


def test_twenty_tasks_are_asked_in_five_languages_each_in_its_own_words() -> None:
    assert Counter(task.check for task in tasks) == {"contains": 10, "limit": 6, "sentences": 4}
    for task in tasks:
        assert len(set(task.prompts.values())) == 5, task.id
        assert all(answers and all(answers) for answers in task.answers.values()), task.id
