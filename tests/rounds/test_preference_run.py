"""Method "preference" from a recipe: labels of the workspace or a file, bad input, and the same end when cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_round import call

from postgrad.db.engine import sqlite_url
from postgrad.feedback.pairs import Answered, Pair, Verdict
from postgrad.feedback.records import Sample, Submission
from postgrad.feedback.store import LabelStore
from postgrad.methods import preference
from postgrad.rounds.manifest import find_round, list_rounds
from postgrad.rounds.preference_data import prepare
from postgrad.run import RunDirectory, sha256_file
from postgrad.testing import tiny_model
from postgrad.text import Renderer, load_tokenizer
from postgrad.types import Conversation, Example, Message, Preference, SamplingParams

RECIPE = """
method = "preference"
name = "tiny"
seed = 3
batch_tokens = 256

[model]
name = {model}
lora_rank = {lora_rank}

[data]
validation_share = 0.4

[[data.sources]]
{source}

[preference]
algorithm = "{algorithm}"
epochs = 2
prompts_per_step = 3
learning_rate = 1e-3
"""
PAIRS = 'format = "pairs"\npath = "rows.jsonl"'
LABELS = 'format = "labels"'
ALONE = 'format = "unpaired"\npath = "rows.jsonl"'
ROWS = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": f"No idea about {i}"} for i in range(12)]
JUDGED = [
    {"prompt": f"What is {i}?", "completion": f"It is {i}." if i % 3 else "Well.", "label": i % 3 > 0}
    for i in range(12)
]


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr("postgrad.rounds.preference.SAMPLE_TOKENS", 4)


@pytest.fixture
def recipe(tmp_path, tiny_model_directory):
    def write(rows=ROWS, algorithm="dpo", lora_rank=0, source=PAIRS, model=None):
        folder = tmp_path / "recipe"
        folder.mkdir(exist_ok=True)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        path = folder / "tiny.toml"
        model = json.dumps(str(model or tiny_model_directory))
        path.write_text(RECIPE.format(model=model, lora_rank=lora_rank, source=source, algorithm=algorithm))
        return path

    return write


def run(capsys, path, workspace, *overrides):
    return call(capsys, "run", path, "--workspace", workspace, *(w for o in overrides for w in ("--set", o)))


def outcome(workspace: Path):
    """All that a run leaves but times: metrics, summaries, the policy's bytes."""
    manifest = find_round(workspace, "latest")
    directory = manifest.stage_directory("preference")
    metrics = [
        {k: v for k, v in row.items() if not k.startswith("time/")} for row in RunDirectory(directory).read_metrics()
    ]
    return {
        "metrics": metrics,
        "summaries": [stage.summary for stage in manifest.record.stages],
        "policy": sha256_file(directory / "policy/model.safetensors"),
    }


@pytest.mark.parametrize("algorithm", ["dpo", "ipo", "kto", "orpo", "simpo"])
def test_every_algorithm_runs_from_a_file_of_pairs_to_a_policy_that_answers(capsys, recipe, tmp_path, algorithm):
    code, out, err = run(capsys, recipe(algorithm=algorithm), tmp_path / "w")
    assert (code, err) == (0, ""), err
    assert "4/4 evaluate" in out
    manifest = find_round(tmp_path / "w", "latest")
    pairs, reference, learned, evaluated = (stage.summary for stage in manifest.record.stages)
    assert (pairs["read"], pairs["used"], pairs["train_prompts"], pairs["heldout_prompts"]) == (12, 12, 9, 3)
    assert pairs["better_tokens"] < pairs["worse_tokens"]
    assert reference.get("needed") == ("no" if algorithm in ("orpo", "simpo") else None)
    assert learned["loss_last"] < learned["loss_first"]
    assert evaluated["kl_from_reference"] > -1
    assert evaluated["longer_is_better"] == 0
    rows = RunDirectory(manifest.stage_directory("preference")).read_metrics()
    assert len(rows) == 6
    assert ("preference/kl" in rows[0]) == (algorithm == "kto")
    assert rows[-1]["preference/margin"] > rows[0]["preference/margin"]
    if algorithm in ("dpo", "ipo", "kto"):
        assert rows[0]["preference/margin"] == pytest.approx(0, abs=1e-4), "the policy begins as its reference"
    code, out, _ = call(capsys, "report", "latest", "--workspace", tmp_path / "w")
    page = Path(out.strip()).read_text()
    assert all(heading in page for heading in ("Margin", "Heldout accuracy", "Training accuracy", "Samples"))


def question(number):
    return Example(f"p{number}", Conversation((Message("user", f"Question {number}?"),)))


def sampled(number, text, stage="sft"):
    """Its tokens are another tokenizer's."""
    params = SamplingParams(max_tokens=40)
    return Sample(f"p{number}", "0001-test", stage, "ab" * 32, 3, params, 1, text, (5, 6, 2), "stop")


@pytest.fixture
def workspace(tmp_path, tiny_model_directory):
    """A label store of eight prompts with two answers each, the good one preferred, a tie, and an abstention."""
    directory = tmp_path / "labelled"
    directory.mkdir()
    with LabelStore(sqlite_url(directory / "postgrad.db")) as store:
        store.add_round("0001-test", recipe="quickstart")
        store.add_prompts(question(i) for i in range(10))
        store.add_raters("human", {"ann": {}})
        asked = [store.add_samples([sampled(i, f"Good {i}."), sampled(i, f"Bad {i}.", "initial")]) for i in range(10)]
        questions = store.ask(asked, purpose="train", round_id="0001-test")
        tiers = [((0,), (1,))] * 8 + [((0, 1),), ()]
        store.answer(
            Submission(Preference(one, "ann", given, rationale="" if given else "unsure"), (0, 1))
            for one, given in zip(questions, tiers, strict=True)
        )
    return directory


def test_the_labels_of_a_workspace_are_learned_from_and_what_is_left_out_is_counted(capsys, recipe, workspace):
    code, _, err = run(capsys, recipe(source=LABELS), workspace)
    assert (code, err) == (0, ""), err
    manifest = find_round(workspace, "latest")
    pairs = manifest.record.stages[0].summary
    assert (pairs["read"], pairs["used"], pairs["left_out_ties"]) == (9, 8, 1)
    assert pairs["train_prompts"] + pairs["heldout_prompts"] == 8
    assert pairs["written_by_this_policy_frac"] == 0
    lines = (manifest.stage_directory("pairs") / "labels.jsonl").read_text().splitlines()
    learned = [(row["rater"], row["better"]["text"], row["tie"]) for row in map(json.loads, lines)]
    assert sorted(learned) == [("ann", f"Good {i}.", False) for i in range(8)]


def test_kto_takes_a_tie_for_two_good_answers(capsys, recipe, workspace):
    assert run(capsys, recipe(source=LABELS, algorithm="kto"), workspace)[0] == 0
    manifest = find_round(workspace, "latest")
    assert manifest.record.stages[0].summary["used"] == 9
    config = json.loads((manifest.stage_directory("preference") / "config.json").read_text())
    good, bad = config["good_weight"], config["bad_weight"]
    assert good == 1
    assert bad > 1, "the rarer kind weighs more"


def test_what_is_said_of_an_answer_makes_it_a_good_or_a_bad_one(tiny_model_directory):
    prompt = Conversation((Message("user", "Q?"),))

    def pair(better, worse, **known):
        return Pair("q", prompt, Answered(better), Answered(worse), "ann", "human", "labels", **known)

    labels = [
        pair("a", "b", weight=0.5),
        pair("a", "c", tie=True),
        pair("d", "e", tie=True, both_bad=True),
        Verdict("q", prompt, Answered("b"), True, "ann", "human", "rows.jsonl", weight=2.0),
    ]
    renderer = Renderer(load_tokenizer(tiny_model_directory))
    found = prepare(labels, renderer=renderer, max_tokens=99, unpaired=True)
    (one,) = found.compared
    assert [bytes(ids[:-1]) for ids in one.answers] == [b"a", b"b", b"c", b"d", b"e"]
    assert one.opinions == (
        (0, True, 0.5), (1, False, 0.5), (0, True, 1), (2, True, 1), (3, False, 1), (4, False, 1), (1, True, 2.0),
    )  # fmt: skip
    assert (one.choices, found.ties, found.used) == (((0, 1, 0.5),), 0, labels)
    found = prepare(labels[:3], renderer=renderer, max_tokens=99, unpaired=False)
    assert (found.compared[0].choices, found.ties, found.used) == (((0, 1, 0.5),), 2, labels[:1])
    long = prepare([pair("a", "x" * 99)], renderer=renderer, max_tokens=99, unpaired=False)
    assert (len(long.compared), len(long.too_long)) == (0, 1)


def test_answers_judged_by_themselves_are_learned_from_by_kto_alone(capsys, recipe, tmp_path):
    code, _, err = run(capsys, recipe(rows=JUDGED, algorithm="kto", source=ALONE), tmp_path / "w")
    assert (code, err) == (0, ""), err
    rows = RunDirectory(find_round(tmp_path / "w", "latest").stage_directory("preference")).read_metrics()
    assert rows[-1]["loss/preference"] < rows[0]["loss/preference"]
    code, _, err = run(capsys, recipe(rows=JUDGED, source=ALONE), tmp_path / "x")
    assert code == 2
    assert "from which only 'preference.algorithm' = \"kto\" learns" in err


def test_an_adapter_learns_from_the_model_beneath_it(capsys, recipe, tmp_path):
    assert run(capsys, recipe(lora_rank=4), tmp_path / "w", "preference.learning_rate=1e-2")[0] == 0
    directory = find_round(tmp_path / "w", "latest").stage_directory("preference")
    rows = RunDirectory(directory).read_metrics()
    assert rows[0]["preference/margin"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["preference/margin"] > 0.05
    assert (directory / "policy/adapter").is_dir()
    again = run(capsys, recipe(model=directory / "policy"), tmp_path / "again", "preference.epochs=1")
    assert again[0] == 0, "what it leaves is a model to begin from"


def test_the_newest_sft_policy_of_the_workspace_is_found_by_its_name(capsys, recipe, tmp_path, tiny_model_directory):
    from postgrad.errors import ConfigError
    from postgrad.rounds.manifest import find_or_create_round
    from postgrad.rounds.preference import initial_policy

    with pytest.raises(ConfigError, match="postgrad quickstart"):
        initial_policy("sft", tmp_path)
    made = find_or_create_round(
        tmp_path, {"name": "a", "seed": 0, "method": "round"}, versions={}, model={"name": "m", "sha256": "0"}
    )
    with made.stage("sft", inputs={}) as stage:
        assert stage.todo
        with pytest.raises(ConfigError):
            initial_policy("sft", tmp_path)
        tiny_model(stage.directory / "policy", seed=1)
    assert initial_policy("sft", tmp_path) == made.stage_directory("sft") / "policy"
    assert initial_policy(str(tiny_model_directory), tmp_path) == tiny_model_directory


SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
BAD = {
    "equal sides": ([{**row, "rejected": row["chosen"]} for row in ROWS], (), "both answers are the same"),
    "one prompt": (ROWS[:1], (), "of 1 labels, too few prompts remain to learn from and to check it on"),
    "no answer fits": ([{**row, "chosen": "long " * 200} for row in ROWS], (), "12 too long"),
    "no labels": (ROWS, ('data.sources=[{format="labels"}]',), "has none; run `postgrad quickstart"),
    "no such file": (ROWS, ('data.sources=[{format="pairs",path="gone.jsonl"}]',), "does not exist"),
    "a knob of another": (ROWS, ("preference.gamma=1.0",), "belongs to simpo"),
    "smoothing of another": (ROWS, ("preference.algorithm=ipo", "preference.label_smoothing=0.1"), "belongs to dpo"),
    "an unknown algorithm": (ROWS, ("preference.algorithm=ppo",), "preference.algorithm"),
    "a question": ([{"chosen": SAID, "rejected": SAID[:1]}, *ROWS], (), "1: 'rejected' must end with an assistant"),
    "a call": ([{"chosen": SAID, "rejected": [SAID[0], CALL]}, *ROWS], (), "1: 'rejected' must end with an assistant"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_learned_from_is_refused_in_a_sentence_before_anything_is_made(capsys, recipe, tmp_path, name):
    rows, overrides, said = BAD[name]
    code, _, err = run(capsys, recipe(rows=rows), tmp_path / "w", *overrides)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert list_rounds(tmp_path / "w") == []


def test_a_label_that_comes_in_during_a_run_does_not_change_what_it_learns(capsys, recipe, workspace, monkeypatch):
    path = recipe(source=LABELS)

    def cut(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("postgrad.rounds.learn.train_preference", cut)
        assert run(capsys, path, workspace)[0] == 130
    with LabelStore(sqlite_url(workspace / "postgrad.db")) as store:
        store.add_raters("human", {"bob": {}})
        question = next(iter(store.comparisons(purpose="train")))
        store.answer([Submission(Preference(question.id, "bob", ((0,), (1,))), (0, 1))])
    assert run(capsys, path, workspace)[0] == 0
    (manifest,) = list_rounds(workspace)
    assert manifest.record.stages[0].summary["read"] == 9


@pytest.mark.parametrize("algorithm", ["kto", "simpo"])
def test_a_run_that_was_cut_off_anywhere_ends_where_an_uninterrupted_one_does(
    capsys, recipe, tmp_path, monkeypatch, algorithm
):
    path = recipe(algorithm=algorithm, lora_rank=2)
    monkeypatch.setattr("postgrad.rounds.learn.CHUNK", 4)
    monkeypatch.setattr("postgrad.methods.preference.SAVE_EVERY", 4)
    assert run(capsys, path, tmp_path / "whole")[0] == 0
    places = {"_settled": (5,), "answer_logprobs": (2,) if algorithm == "kto" else ()}
    for name, stops in places.items():
        module = "postgrad.rounds.preference" if name == "answer_logprobs" else "postgrad.methods.preference"
        real = getattr(preference, name)
        for stop in stops:
            calls = []

            def cut(*args, calls=calls, stop=stop, real=real):
                calls.append(1)
                if len(calls) > stop:
                    raise KeyboardInterrupt
                return real(*args)

            with monkeypatch.context() as patch:
                patch.setattr(f"{module}.{name}", cut)
                assert run(capsys, path, tmp_path / f"{name}{stop}")[0] == 130
            assert run(capsys, path, tmp_path / f"{name}{stop}")[0] == 0
            assert outcome(tmp_path / f"{name}{stop}") == outcome(tmp_path / "whole")


def test_the_reference_is_read_once_and_gone_while_the_policy_learns(capsys, recipe, tmp_path, monkeypatch):
    from postgrad.rounds import learn as learning
    from postgrad.rounds import preference as rounds

    loaded, real = [], rounds.load_policy

    def load(directory, **options):
        loaded.append(directory.name)
        return real(directory, **options)

    during = []
    learn = learning.train_preference

    def watched(*args, **kwargs):
        before = len(loaded)
        learn(*args, **kwargs)
        during.append(len(loaded) - before)

    monkeypatch.setattr(rounds, "load_policy", load)
    monkeypatch.setattr(learning, "train_preference", watched)
    assert run(capsys, recipe(), tmp_path / "w")[0] == 0
    assert loaded == ["tiny", "tiny", "policy", "tiny"], "to read, to learn, to evaluate the policy, and its reference"
    assert during == [0]
