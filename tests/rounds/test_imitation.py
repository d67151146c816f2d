"""Methods "sft", "iterate" and "distill" from recipes, on a byte-level model: what they find, refuse and resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_round import call, make_rows

from postgrad.db.engine import sqlite_url
from postgrad.feedback.editors import SimulatedEditor
from postgrad.feedback.people import People
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.store import LabelStore
from postgrad.feedback.task_list import change_tasks
from postgrad.methods import rl, sft
from postgrad.models.load import load_policy
from postgrad.rounds.manifest import find_round, list_rounds
from postgrad.run import RunDirectory
from postgrad.testing import tiny_model
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer

HEAD = """
method = "{method}"
name = "tiny"
seed = 3
batch_tokens = 2048

[model]
name = {model}
"""
SFT = """
[data]
system = "Be brief."
heldout_share = 0.3

[[data.sets]]
source = "rows.jsonl"
splits = ["sft", "rl"]
weight = 3

[[data.sets]]
source = "chats.jsonl"
turns = "{turns}"

[sft]
steps = 12
examples_per_step = 4
learning_rate = 1e-2
evaluate_every = 4
"""
ITERATE = """
[data]
source = "rows.jsonl"
system = "Be brief."

[iterate]
rounds = 2
prompts_per_round = 12
answers_per_prompt = {answers}
max_tokens = 10

{teacher}

[sft]
examples_per_step = 6
learning_rate = 3e-3

[arena]
num_prompts = 8
num_raters = 2
resamples = 20
"""
EDITS = '[edits]\nby = "{by}"\ncareless_frac = 0.0'
BEST = '[best]\nmin_reward = 0.3\n\n[[graders]]\nfunction = "rewards.py:low"'
DISTILL = """
[data]
source = "rows.jsonl"

[teacher]
{teacher}

[distill]
kind = "{kind}"
estimate = "{estimate}"
steps = 8
prompts_per_step = 4
group_size = 4
learning_rate = 1e-2
max_tokens = 6

[arena]
num_prompts = 8
num_raters = 2
resamples = 20
"""
REWARDS = """
def low(prompt, answer, target, metadata):
    return sum(c < "@" for c in answer) / (1 + len(answer))
"""


@pytest.fixture
def write(tmp_path, tiny_model_directory):
    """A recipe of a method, with its files beside it."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows()))
    (tmp_path / "rewards.py").write_text(REWARDS)
    chats = [
        {
            "id": f"c{i}",
            "train": [2],
            "messages": [
                {"role": "user", "content": f"Hello {i}"},
                {"role": "assistant", "content": "aaaa"},
                {"role": "user", "content": "More"},
                {"role": "assistant", "content": "bbbb"},
            ],
        }
        for i in range(20)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))

    def recipe(method, text, **values):
        path = tmp_path / f"{method}.toml"
        head = HEAD.format(method=method, model=json.dumps(str(tiny_model_directory)))
        path.write_text(head + text.format(**values))
        return path

    return recipe


def run(capsys, recipe, workspace, *overrides):
    options = [word for override in overrides for word in ("--set", override)]
    return call(capsys, "run", recipe, "--workspace", workspace, *options)


def stages(workspace):
    return {stage.name: stage for stage in find_round(workspace, "latest").record.stages}


def lessons(workspace, k=1):
    path = find_round(workspace, "latest").stage_directory(f"teach-{k}") / "lessons.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcome(workspace):
    """Everything that does not depend on the clock."""
    manifest = find_round(workspace, "latest")
    return {
        name: digest
        for stage in manifest.record.stages
        for name, digest in stage.outputs.items()
        if not name.endswith("metrics.jsonl")
    }, [stage.summary for stage in manifest.record.stages]


def test_a_mixture_is_learned_by_weight_and_its_validation_loss_falls(capsys, write, tmp_path):
    code, out, err = run(capsys, write("sft", SFT, turns="last"), tmp_path / "w")
    assert (code, err) == (0, ""), err
    data, learned = stages(tmp_path / "w").values()
    assert data.summary["rows_1_train"] + data.summary["rows_1_heldout"] == 24, "two splits of twelve"
    assert learned.summary["chats_2_nll_after"] < learned.summary["chats_2_nll_before"]
    assert learned.summary["rows_1_nll_after"] < learned.summary["rows_1_nll_before"]
    directory = find_round(tmp_path / "w", "latest").stage_directory("sft")
    rows = RunDirectory(directory).read_metrics()
    assert [row["step"] for row in rows if "validation/nll" in row] == [4, 8, 12]
    page = Path(call(capsys, "report", "--workspace", tmp_path / "w")[1].strip()).read_text()
    assert "Validation loss over 3 steps (sft)" in page
    assert page.count('class="card sample"') == 8
    assert f"chat {directory / 'policy'}" in out.replace("\n", "")
    assert load_policy(directory / "policy").context


@pytest.mark.parametrize(("turns", "expected"), [("all", 10), ("last", 5), ("named", 5)])
def test_only_the_turns_that_are_asked_for_are_trained(capsys, write, tmp_path, turns, expected):
    assert run(capsys, write("sft", SFT, turns=turns), tmp_path / "w", "sft.steps=1")[0] == 0
    path = find_round(tmp_path / "w", "latest").stage_directory("data") / "rows.jsonl"
    trained = {row["trained"] for row in map(json.loads, path.read_text().splitlines()) if row["set"] == 2}
    assert trained == {expected}, "four letters and an end, once or twice"


def test_a_row_without_the_turns_that_it_should_name_is_refused(capsys, write, tmp_path):
    path = write("sft", SFT, turns="named")
    (tmp_path / "chats.jsonl").write_text((tmp_path / "chats.jsonl").read_text().replace("[2]", "[3]"))
    code, _, err = run(capsys, path, tmp_path / "w")
    assert code == 2
    assert "row 'c0': 'train' must list some of its assistant turns, 1 to 2" in err
    assert err.count("\n") == 1
    assert list_rounds(tmp_path / "w") == []


def test_sft_that_was_cut_off_ends_where_an_uninterrupted_run_does(capsys, write, tmp_path, monkeypatch):
    path = write("sft", SFT, turns="all")
    assert run(capsys, path, tmp_path / "whole")[0] == 0
    real, steps = sft.rate_share, []

    def cut(*args, **kwargs):
        steps.append(1)
        if len(steps) == 11:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sft, "rate_share", cut)
        assert run(capsys, path, tmp_path / "cut")[0] == 130
    assert run(capsys, path, tmp_path / "cut")[0] == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_simulated_edits_are_stored_learned_and_measured_round_by_round(capsys, write, tmp_path):
    path = write("iterate", ITERATE, answers=1, teacher=EDITS.format(by="simulated"))
    code, out, err = run(capsys, path, tmp_path / "w")
    assert (code, err) == (0, ""), err
    made = stages(tmp_path / "w")
    assert list(made) == ["questions", *(f"{s}-{k}" for k in (1, 2) for s in ("sample", "teach", "sft")), "arena"]
    first = made["teach-1"].summary
    assert first["utility_after"] > first["utility_before"]
    with LabelStore(sqlite_url(tmp_path / "w" / "postgrad.db")) as store:
        edits = list(store.edits(round_id="0001-tiny", stage="sample-1"))
        assert len(edits) == first["answers"] - first["without_an_edit"] > 0
        assert len(list(store.edits())) > len(edits), "the second round's are stored too"
    assert {e.text for e in edits} == {lesson["after"] for lesson in lessons(tmp_path / "w")}
    assert {e.rater_id for e in edits} <= {f"editor-3-{i:03d}" for i in range(4)}
    arena = made["arena"].summary
    assert {f"{p}_utility" for p in ("initial", "round_1", "round_2")} <= arena.keys()
    assert arena["initial_kl"] == pytest.approx(0, abs=1e-4)
    assert arena["round_2_kl"] != 0
    rows = RunDirectory(find_round(tmp_path / "w", "latest").stage_directory("arena")).read_metrics()
    assert [row["step"] for row in rows] == [0, 1, 2]
    page = Path(call(capsys, "report", "--workspace", tmp_path / "w")[1].strip()).read_text()
    assert "Utility, round by round over 3 rounds (arena)" in page
    assert "Loss (sft-2)" in page
    assert "stages/sft-2/policy" in out.replace("\n", "")


def test_people_are_asked_and_the_run_goes_on_when_their_edits_are_there(capsys, write, tmp_path):
    path = write("iterate", ITERATE, answers=1, teacher=EDITS.format(by="people"))
    url = sqlite_url(tmp_path / "w" / "postgrad.db")
    for k in (1, 2):
        code, _, err = run(capsys, path, tmp_path / "w")
        assert code == 2
        assert f"12 of 12 answers wait for an edit; run `postgrad label serve --workspace {tmp_path / 'w'}`" in err
        assert err.count("\n") == 1
        with LabelStore(url) as store:
            store.add_raters("human", {"ann": {}})
            queue = LabelQueue(store)
            for i in range(12):
                task = queue.claim("ann")
                if k == 1 and i == 0:
                    change_tasks(store, [task.task_id], by=People(store).local(), state="closed")
                    queue.skip(task.id, "ann", "no sense")
                    continue
                assert task.kind == "edit"
                queue.submit(task.id, "ann", {"text": f"Answer {k} {i}."}, client_key=f"{k} {i}")
    code, _, err = run(capsys, path, tmp_path / "w")
    assert (code, err) == (0, ""), err
    assert len(list_rounds(tmp_path / "w")) == 1
    assert {lesson["after"] for lesson in lessons(tmp_path / "w", 2)} == {f"Answer 2 {i}." for i in range(12)}
    assert len(lessons(tmp_path / "w", 1)) == 11, "a closed task is waited for no longer"


def test_the_best_of_several_is_learned_as_it_was_sampled(capsys, write, tmp_path):
    path = write("iterate", ITERATE, answers=4, teacher=BEST)
    code, _, err = run(capsys, path, tmp_path / "w", "iterate.max_tokens=60")
    assert (code, err) == (0, ""), err
    made = stages(tmp_path / "w")
    manifest = find_round(tmp_path / "w", "latest")
    graded = RunDirectory(manifest.stage_directory("teach-1")).read_trajectories(1)
    chosen = {lesson["id"]: lesson for lesson in lessons(tmp_path / "w")}
    by_prompt: dict[str, list] = {}
    for row in graded:
        by_prompt.setdefault(row["example_id"], []).append(row)
    for name, rows in by_prompt.items():
        whole = [row for row in rows if row["status"] == "completed" and row["reward"] >= 0.3]
        assert (name in chosen) == bool(whole)
        if whole:
            best = max(whole, key=lambda row: row["reward"])["turns"][0]
            ids = chosen[name]["ids"]
            assert ids == best["prompt_ids"] + best["token_ids"]
            assert sum(chosen[name]["mask"]) == len(best["token_ids"])
    assert 0 < len(chosen) < len(by_prompt) == 12
    assert made["teach-1"].summary["without_a_lesson"] == 12 - len(chosen)
    assert made["teach-1"].summary["reward_of_the_chosen"] > made["teach-1"].summary["reward_mean"]
    assert "round_2_right" in made["arena"].summary


def test_where_no_group_has_a_right_answer_the_round_stops_with_the_reason(capsys, write, tmp_path):
    path = write("iterate", ITERATE, answers=2, teacher=BEST)
    code, _, err = run(capsys, path, tmp_path / "w", "best.min_reward=2")
    assert code == 2
    assert "round 1: none of 12 prompts brought an answer to learn from" in err


def test_iteration_that_was_cut_off_ends_where_an_uninterrupted_run_does(capsys, write, tmp_path, monkeypatch):
    path = write("iterate", ITERATE, answers=1, teacher=EDITS.format(by="simulated"))
    assert run(capsys, path, tmp_path / "whole")[0] == 0
    real, edited = SimulatedEditor.edit, []

    def cut(self, *args, **kwargs):
        edited.append(1)
        if len(edited) == 15:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SimulatedEditor, "edit", cut)
        assert run(capsys, path, tmp_path / "cut")[0] == 130
    assert stages(tmp_path / "cut")["teach-2"].status == "running"
    assert run(capsys, path, tmp_path / "cut")[0] == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


PROMPTED = 'system = "zzzz zzzz zzzz zzzz"'


@pytest.mark.parametrize("estimate", ["sampled", "full"])
def test_context_distillation_moves_the_student_towards_what_it_does_when_told(capsys, write, tmp_path, estimate):
    path = write("distill", DISTILL, kind="on-policy", estimate=estimate, teacher=PROMPTED)
    code, _, err = run(capsys, path, tmp_path / "w", "distill.steps=10")
    assert (code, err) == (0, ""), err
    made = stages(tmp_path / "w")
    assert made["questions"].summary["extra_prompt_tokens_of_the_teacher"] > 20
    arena = made["arena"].summary
    assert arena["student_teacher_kl"] < 0.8 * arena["initial_teacher_kl"]
    page = Path(call(capsys, "report", "--workspace", tmp_path / "w")[1].strip()).read_text()
    assert "KL from the teacher" in page


def test_a_teachers_answers_are_imitated(capsys, write, tmp_path):
    path = write("distill", DISTILL, kind="sequence", estimate="sampled", teacher=PROMPTED)
    code, _, err = run(capsys, path, tmp_path / "w", "distill.max_tokens=40")
    assert (code, err) == (0, ""), err
    made = stages(tmp_path / "w")["distill"].summary
    assert made["answers"] == 8 * 4 * 4
    assert 0 < made["cut_off"] < 1
    assert made["loss_last"] < made["loss_first"]


def test_distillation_that_was_cut_off_ends_where_an_uninterrupted_run_does(capsys, write, tmp_path, monkeypatch):
    path = write("distill", DISTILL, kind="on-policy", estimate="sampled", teacher=PROMPTED)
    assert run(capsys, path, tmp_path / "whole", "model.lora_rank=2")[0] == 0
    real, updates = rl._update, []

    def cut(*args, **kwargs):
        updates.append(1)
        if len(updates) == 6:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(rl, "_update", cut)
        assert run(capsys, path, tmp_path / "cut", "model.lora_rank=2")[0] == 130
    assert run(capsys, path, tmp_path / "cut", "model.lora_rank=2")[0] == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_documents_are_for_the_teacher_alone(capsys, write, tmp_path):
    rows = [row | {"document": f"It is {i}."} for i, row in enumerate(make_rows())]
    path = write("distill", DISTILL, kind="on-policy", estimate="sampled", teacher='documents = "document"')
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(capsys, path, tmp_path / "w", "distill.steps=1")[0] == 0
    assert stages(tmp_path / "w")["questions"].summary["extra_prompt_tokens_of_the_teacher"] > 5
    directory = find_round(tmp_path / "w", "latest").stage_directory("distill")
    renderer = Renderer(load_tokenizer(directory / "policy"))
    asked = [renderer.decode(t["turns"][0]["prompt_ids"]) for t in RunDirectory(directory).read_trajectories(1)]
    assert not any("It is" in text for text in asked)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"prompt": "What?"}) + "\n" for row in rows))
    code, _, err = run(capsys, path, tmp_path / "twins")
    assert code == 2
    assert "another row asks the student the same and shows the teacher something else" in err


def test_a_constraint_that_nobody_can_judge_is_refused_before_anything_is_sampled(capsys, write, tmp_path):
    path = write("iterate", ITERATE, answers=1, teacher=EDITS.format(by="simulated"))
    rows = [*make_rows(), {"id": "odd", "split": "rl", "prompt": "Why?", "constraints": [{"kind": "rhyme"}]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = run(capsys, path, tmp_path / "w")
    assert code == 2
    assert "row 'odd': unknown constraint kind 'rhyme'" in err
    assert list_rounds(tmp_path / "w") == []


def other_tokenizer(directory):
    """The tiny model under a tokenizer that numbers its words in another order."""
    path = tiny_model(directory, seed=5) / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tokenizer))
    return directory


def test_a_teacher_with_another_tokenizer_is_refused_with_the_reason(capsys, write, tmp_path):
    teacher = other_tokenizer(tmp_path / "teacher")
    path = write("distill", DISTILL, kind="on-policy", estimate="sampled", teacher=f"name = {json.dumps(str(teacher))}")
    code, _, err = run(capsys, path, tmp_path / "w")
    assert code == 2
    assert "has another tokenizer than student" in err
    assert 'set distill.kind = "sequence", which goes by text' in err
    assert err.count("\n") == 1
    assert list_rounds(tmp_path / "w") == []
    overrides = ("distill.kind=sequence", "distill.steps=2", "distill.max_tokens=40")
    assert run(capsys, path, tmp_path / "w", *overrides)[0] == 0, "text has no tokenizer"


def test_a_teacher_may_have_another_template(capsys, write, tmp_path):
    template = (
        "{%- for message in messages -%}{{ '<start>' ~ message['role'] ~ ':\\n' ~ message['content'] ~ '<end>' }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start>assistant:\\n' }}{%- endif -%}"
    )
    teacher = tiny_model(tmp_path / "teacher", seed=5, chat_template=template)
    path = write("distill", DISTILL, kind="on-policy", estimate="full", teacher=f"name = {json.dumps(str(teacher))}")
    code, _, err = run(capsys, path, tmp_path / "w", "distill.steps=6")
    assert (code, err) == (0, ""), err
    arena = stages(tmp_path / "w")["arena"].summary
    assert arena["student_teacher_kl"] < arena["initial_teacher_kl"]


@pytest.mark.parametrize(
    ("method", "text", "values", "override", "problem"),
    [
        ("iterate", ITERATE, {"answers": 1, "teacher": ""}, "seed=1", "either a section 'edits' or a section 'best'"),
        ("iterate", ITERATE, {"answers": 1, "teacher": BEST}, "seed=1", "the best of one answer is no choice"),
        ("iterate", ITERATE, {"answers": 2, "teacher": BEST}, "best.reward_model=x", "'best.reward_model'"),
        ("iterate", ITERATE, {"answers": 2, "teacher": "[best]"}, "best.reward_model=gone", "does not exist"),
        ("distill", DISTILL, {"kind": "sequence", "estimate": "full", "teacher": PROMPTED}, "seed=1", "'on-policy'"),
        ("distill", DISTILL, {"kind": "on-policy", "estimate": "full", "teacher": ""}, "seed=1", "nothing new"),
        (
            "distill",
            DISTILL,
            {"kind": "on-policy", "estimate": "full", "teacher": PROMPTED},
            "distill.gamma=0.5",
            "'distill.gamma'",
        ),
        (
            "distill",
            DISTILL,
            {"kind": "on-policy", "estimate": "sampled", "teacher": PROMPTED},
            "distill.max_tokens=460",
            "the teacher's longest prompt",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(capsys, write, tmp_path, method, text, values, override, problem):
    code, _, err = run(capsys, write(method, text, **values), tmp_path / "w", override)
    assert code == 2
    assert problem in err, err
    assert err.count("\n") == 1
    assert "{" not in err, "the sentence shows no tables"
    assert list_rounds(tmp_path / "w") == []
