"""An estimate before a run, and the change that would make it fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_round import call, write_recipe

from postgrad.config.load import load_recipe
from postgrad.errors import ConfigError
from postgrad.models.footprint import Sizes, activation_bytes, blank_policy, count_sizes
from postgrad.models.load import load_policy, read_config
from postgrad.recipes import recipe_path
from postgrad.rounds.preflight import Plan, check_memory, plan_run
from postgrad.testing import tiny_model

GB = 10**9
PATH = recipe_path("quickstart")


def sizes(*, heads: tuple[str, ...] = (), lora_rank: int = 0, train_layers: int = 0) -> Sizes:
    """1 GB of weights and 1 MB of activations a token, in ten layers."""
    trained = lora_rank * 10**6 if lora_rank else GB * (train_layers or 10) // 10
    return Sizes(
        weights=GB,
        trained=trained,
        kept=1_000_000,
        inputs=100_000,
        keys_values=10_000,
        adapted=lora_rank > 0,
        layers=10,
        hidden=100,
        words=1000,
        context=2048,
    )


def plan(*overrides: str) -> Plan:
    """Of the quickstart's recipe: a group of eight answers has 320 tokens beside its prompt."""
    return Plan(load_recipe(PATH, overrides), sizes, process=500_000_000, prompt=50, demonstration=100)


def peak(of: Plan) -> int:
    return max(estimate.peak for estimate in of.estimates())


def refusal(of: Plan, attainable: float) -> str:
    with pytest.raises(ConfigError) as e:
        check_memory(of, int(attainable))
    return str(e.value)


def settings(said: str) -> list[str]:
    return re.findall(r"--set (\S+)", said)


def test_memory_enough_is_not_worth_a_word():
    assert check_memory(plan(), 100 * GB) is None


def test_an_estimate_within_a_tenth_of_what_there_is_warns():
    needed = peak(plan())
    assert check_memory(plan(), round(needed / 0.89)) is None
    assert "stage 'rl' needs about" in str(check_memory(plan(), round(needed / 0.91)))
    assert "stage 'rl' needs about" in refusal(plan(), needed - 1)


CASES: list[tuple[tuple[str, ...], float, list[str]]] = [
    (("batch_tokens=2048", "rl.minibatches=1"), 9.0, ["batch_tokens"]),
    # A group of siblings stays together: fewer tokens a batch would not divide it.
    (("rl.max_tokens=400",), 10.0, ["model.gradient_checkpointing"]),
    ((), 6.0, ["model.lora_rank"]),
    ((), 5.0, ["model.lora_rank", "reward.train_layers"]),
]


@pytest.mark.parametrize(("overrides", "gigabytes", "keys"), CASES)
def test_the_refusal_names_the_mildest_change_and_that_change_fits(overrides, gigabytes, keys):
    said = refusal(plan(*overrides), gigabytes * GB)
    changes = settings(said)
    assert [change.partition("=")[0] for change in changes] == keys
    assert ("no single change does" in said) == (len(keys) > 1)
    assert check_memory(plan(*overrides, *changes), int(gigabytes * GB)) is None


def test_a_step_more_tokens_than_it_names_would_not_fit():
    overrides = ("batch_tokens=2048", "rl.minibatches=1")
    (change,) = settings(refusal(plan(*overrides), 9 * GB))
    more = int(change.removeprefix("batch_tokens=")) + 128
    assert check_memory(plan(*overrides, f"batch_tokens={more}"), 9 * GB) is not None


def test_where_no_change_is_enough_it_takes_a_smaller_model():
    assert refusal(plan(), 2 * GB).endswith("is enough; take a smaller model")


def test_the_parts_and_what_there_is_are_in_the_sentence():
    said = refusal(plan(), 6 * GB)
    assert "weights 1.00, reference 1.00, reward model 1.00, adam 2.00, gradients 1.00" in said
    assert "there are 6.00 GB" in said


def test_the_peak_holds_what_is_there_at_one_time():
    (rl,) = plan().estimates()[2:]
    always = rl.process + rl.weights + rl.reference + rl.reward_model + rl.adam + rl.gradients
    assert replace(rl, sampling=0).peak == always + rl.activations + rl.vocabulary
    assert replace(rl, sampling=50 * GB).peak == always + 50 * GB
    assert replace(rl, merging=60 * GB, sampling=50 * GB).peak == always + 60 * GB


def test_an_adapter_needs_no_second_copy_for_its_reference():
    assert [plan(f"model.lora_rank={r}").estimates()[2].reference for r in (0, 16)] == [GB, 0]


@pytest.mark.parametrize(("rank", "heads"), [(0, ()), (0, ("value",)), (4, ())])
def test_a_blank_model_has_the_sizes_of_a_real_one(tmp_path, rank, heads):
    directory = tiny_model(tmp_path)
    blank = blank_policy(read_config(directory), heads=heads, lora_rank=rank)
    real = load_policy(directory, heads=heads, lora_rank=rank)
    counted = count_sizes(blank)
    assert all(p.is_meta for p in blank.parameters())
    assert counted.weights == sum(p.nbytes for p in real.parameters())
    assert counted.trained == sum(p.nbytes for p in real.parameters() if p.requires_grad)
    assert counted.kept == kept_by(real)


def kept_by(model: Any, tokens: int = 64) -> int:
    """Bytes a token that a real forward pass keeps, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states, _ = model.states(torch.arange(tokens)[None], torch.tensor([tokens]), None)
    assert states.requires_grad
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own) // tokens


def test_frozen_layers_keep_nothing_for_the_backward_pass():
    whole = blank_policy(read_config_of(layers=4))
    top = blank_policy(read_config_of(layers=4))
    for layer in top.layers[:2]:
        layer.requires_grad_(False)
    top.lm.get_input_embeddings().weight.requires_grad_(False)
    assert 0.4 < activation_bytes(top) / activation_bytes(whole) < 0.6


def read_config_of(**changes: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=changes["layers"]
    )


def test_the_longest_texts_of_a_recipe_are_found(tmp_path):
    model = tiny_model(tmp_path / "model")
    recipe = load_recipe(write_recipe(tmp_path / "recipe", model))
    made = plan_run(recipe, initial=model, source=tmp_path / "recipe/rows.jsonl")
    assert (made.prompt, made.demonstration) == (55, 59)


def test_a_dry_run_shows_every_stage_and_leaves_nothing(tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe", tiny_model(tmp_path / "model"))
    code, out, _ = call(capsys, "run", recipe, "--workspace", tmp_path / "workspace", "--dry-run")
    assert code == 0
    assert all(word in out for word in ("sft", "reward", "rl", "activations", "peak"))
    assert not (tmp_path / "workspace").exists()


def test_a_run_that_would_not_fit_is_refused_before_it_begins(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("postgrad.models.attainable.attainable_bytes", lambda device: 10_000_000)
    recipe = write_recipe(tmp_path / "recipe", tiny_model(tmp_path / "model"))
    code, _, err = call(capsys, "run", recipe, "--workspace", tmp_path / "workspace")
    assert code == 2
    assert re.match(r"error: stage '\w+' needs about \d.*, and there are 0.01 GB; ", err)
    assert not (tmp_path / "workspace").exists()


def test_preferences_are_estimated_without_the_reference_that_was_read_before():
    recipe = load_recipe(recipe_path("dpo"))
    (estimate,) = Plan(recipe, sizes, process=500_000_000, group=200).estimates()
    assert (estimate.reference, estimate.adam) == (0, 2 * GB)
    (large,) = Plan(recipe, sizes, process=500_000_000, group=8000).estimates()
    assert large.activations > 5 * estimate.activations, "a prompt and its answers stay together"
    changes = settings(refusal(Plan(recipe, sizes, process=500_000_000, group=200), 4.4 * GB))
    assert changes, "the refusal names what to turn"


def test_pretraining_is_estimated_from_the_recipe_alone():
    recipe = load_recipe(recipe_path("pretrain-10m"))
    training, evaluation = plan_run(recipe, initial=None, source=Path("unread")).estimates()
    assert training.weights == training.gradients == training.adam // 2 == evaluation.weights
    assert training.weights // 4 == 4096 * 384 + 5 * (4 * 384**2 + 3 * 384 * 960 + 2 * 384) + 384
    assert evaluation.vocabulary > training.vocabulary


def planned(recipe: str, *overrides: str, teacher: int = 0) -> Plan:
    made = load_recipe(recipe_path(recipe), overrides)
    return Plan(made, sizes, process=500_000_000, prompt=50, demonstration=100, teacher=teacher)


def test_what_imitates_is_estimated_by_what_it_learns_and_samples():
    (sft,), (edits,) = planned("sft").estimates(), planned("edits").estimates()
    assert (sft.stage, edits.stage) == ("sft", "sft")
    assert edits.sampling > sft.sampling == 0
    assert edits.activations == sft.activations, "a micro-batch of 1024 tokens either way"


def test_a_teacher_is_counted_where_it_is_not_the_student_itself():
    (alone,), (beside,) = planned("distill-context").estimates(), planned("distill-context", teacher=GB).estimates()
    assert beside.peak - alone.peak == GB
    (exact,) = planned("distill-context", 'distill.estimate="full"').estimates()
    assert exact.vocabulary > alone.vocabulary
    (by_text,) = planned("distill-context", 'distill.kind="sequence"', teacher=GB).estimates()
    assert by_text.reference == 0
    assert by_text.sampling > GB


def test_the_teachers_own_size_is_read(tmp_path):
    student, teacher = tiny_model(tmp_path / "student"), tiny_model(tmp_path / "teacher", hidden=64)
    made = load_recipe(recipe_path("distill-context"), (f"model.name={student}",))
    rows = write_recipe(tmp_path / "recipe", student).parent / "rows.jsonl"
    large, itself = (plan_run(made, initial=student, source=rows, teacher=path).teacher for path in (teacher, student))
    assert large > 0
    assert itself == 0, "an adapter switched off"
    whole = load_recipe(recipe_path("distill-context"), (f"model.name={student}", "model.lora_rank=0"))
    assert 0 < plan_run(whole, initial=student, source=rows, teacher=student).teacher < large
