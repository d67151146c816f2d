"""What `postgrad samples` shows of the trajectories that a stage saved."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fabricate import fabricate_round
from rich.console import Console
from tiny_round import call

from postgrad.errors import DataError
from postgrad.rounds.manifest import Manifest
from postgrad.rounds.samples import as_texts, choose, inert, load_samples, overview, ranges
from postgrad.run import RunDirectory
from postgrad.types import Completion, Conversation, Example, Group, Message, Score, Trajectory, Turn

HOSTILE = "[red]no markup[/red] \x1b[2J\x1b]0;owned\x07 \x9b31m \r\u202egnp.exe\u2028\ud83d {{x}} :smile:"


def trajectory(name: str, text: str, reward: float | None, *, tokens: int = 2, reason: str = "stop") -> Trajectory:
    completion = Completion(tuple(range(5, 5 + tokens)), (-0.5,) * tokens, reason, 3, text)  # type: ignore[arg-type]
    scores = (
        Score("reward_model", reward, weight=2.0, explanation="because [b]it[/b] is"),
        Score("format", None, explanation="abstains"),
    )
    status = "truncated" if reason == "length" else "completed"
    return Trajectory(name, (Turn((1, 2), completion),), status, scores=scores)  # type: ignore[arg-type]


def groups() -> list[Group]:
    water = Example("q1", Conversation((Message("system", "Be brief."), Message("user", "What is Water?"))))
    fire = Example("q2", Conversation((Message("user", "What is fire?"),)))
    return [
        Group(water, (trajectory("q1/0", "Wet.", 0.25), trajectory("q1/1", "A liquid.", 0.5, tokens=7))),
        Group(
            fire,
            (
                trajectory("q2/0", "Hot and", -1.0, tokens=9, reason="length"),
                Trajectory("q2/1", (), "errored", error="EngineError: gone \x1b[0m"),
            ),
        ),
    ]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A round whose rl stage saved steps 1, 2, 3 and 7, and whose sft stage saved none."""
    found = fabricate_round(tmp_path, metrics=False)
    run = RunDirectory(found.stage_directory("rl"))
    for step in (1, 2, 3, 7):
        run.save_groups(step, groups())
        run.write_metrics(step, {"policy/kl_ref": float(step)})
    return found


def shown(manifest: Manifest, *, tokens: bool = False, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")
    for text in as_texts(load_samples(manifest, stage=None, step=None).records, tokens=tokens):
        console.print(text)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_last_stage_and_step_are_taken_where_none_is_named(manifest: Manifest) -> None:
    saved = load_samples(manifest, stage=None, step=None)
    assert (saved.stage, saved.step, len(saved.records)) == ("rl", 7, 4)
    assert overview(saved).plain == (
        "0001-quickstart, rl, step 7: 4 answers to 2 prompts; policy version 3; reward −2 to 1, mean −0.167; "
        "KL from the reference 7 nats an answer. Saved steps: 1 to 3, 7."
    )
    assert load_samples(manifest, stage="rl", step=2).metrics["policy/kl_ref"] == 2


def test_what_was_not_saved_is_one_sentence_that_says_what_was(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"saved no trajectories at step 12; there are those of 1 to 3, 7$"):
        load_samples(manifest, stage=None, step=12)
    with pytest.raises(DataError, match=r"stage 'sft' of round 0001-quickstart saved no trajectories; --stage rl did"):
        load_samples(manifest, stage="sft", step=None)
    empty = fabricate_round(tmp_path / "empty", until="sft", metrics=False)
    with pytest.raises(DataError, match="has saved no trajectories yet"):
        load_samples(empty, stage=None, step=None)


def test_answers_are_chosen_by_prompt_id_reward_and_length(manifest: Manifest) -> None:
    records = load_samples(manifest, stage=None, step=None).records

    def ids(**options: object) -> list[str]:
        return [record["id"] for record in choose(records, **options)]  # type: ignore[arg-type]

    assert ids() == ["q1/0", "q1/1", "q2/0", "q2/1"]
    assert ids(prompt="WATER") == ["q1/0", "q1/1"]
    assert ids(name="q2") == ["q2/0", "q2/1"]
    assert ids(name="q1/1") == ["q1/1"]
    assert ids(best=2) == ["q1/1", "q1/0"]
    assert ids(worst=9) == ["q2/0", "q1/0", "q1/1"]
    assert ids(longest=2) == ["q2/0", "q1/1"]
    with pytest.raises(DataError, match="none of the 4 answers of this step has 'earth' in its prompt"):
        ids(prompt="earth")
    with pytest.raises(DataError, match="none of the 4 answers of this step has the id 'q3'"):
        ids(name="q3")
    with pytest.raises(DataError, match="none of 1 answers has a reward"):
        ids(name="q2/1", best=1)


def test_a_trajectory_shows_prompt_answer_reward_scores_length_and_end(manifest: Manifest) -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    for text in as_texts(load_samples(manifest, stage=None, step=None).records, tokens=True):
        console.print(text)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines[:9] == [
        "q1", "system: Be brief.", "user: What is Water?", "",
        "  q1/0  reward 0.500  2 tokens  ended", "    Wet.", "    5 -0.500  6 -0.500",
        "    reward_model 0.250 (weight 2): because [b]it[/b] is", "    format abstained: abstains",
    ]  # fmt: skip
    assert lines.count("user: What is Water?") == lines.count("user: What is fire?") == 1
    assert "  q2/0  reward −2  9 tokens  cut at the limit" in lines
    assert lines[-3:] == ["  q2/1  reward –  errored", "    error: EngineError: gone \\x1b[0m", ""]


def test_nothing_that_was_written_by_others_acts_on_the_terminal(manifest: Manifest) -> None:
    record = {
        "group": 0, "example_id": HOSTILE, "prompt": HOSTILE, "id": HOSTILE, "status": "errored", "error": HOSTILE,
        "messages": [{"role": "user", "content": HOSTILE}], "reward": 1.0,
        "scores": [{"grader": HOSTILE, "value": 1.0, "weight": 1.0, "explanation": HOSTILE}],
        "turns": [{"prompt_ids": [1], "token_ids": [5], "logprobs": [-1.0], "finish_reason": HOSTILE,
                   "policy_version": 0, "text": HOSTILE, "feedback": [{"role": "tool", "content": HOSTILE}]}],
    }  # fmt: skip
    path = manifest.stage_directory("rl") / "trajectories" / "step-0008.jsonl"
    path.write_text(json.dumps(record) + "\n", encoding="ascii")
    text = shown(manifest, tokens=True, width=400)
    for acting in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\r", "\u202e", "\u2028", "\ud83d"):
        assert acting not in text, ascii(acting)
    assert text.count("[red]no markup[/red] \\x1b[2J\\x1b]0;owned\\x07 \\x9b31m \\r\\u202egnp.exe\\u2028\\ud83d") == 9
    assert text.count(":smile:") == 9
    text.encode("utf-8")


def test_half_a_surrogate_pair_is_saved_read_and_shown(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    score = Score("judge", None, explanation="raised: bad byte \udcff")
    half = replace(trajectory("q1/\ud800", "Wet \ud800, Grüße.", 0.5), scores=(score,), error="at \udfff")
    question = Example("q1", Conversation((Message("user", "What is \ud83d?"),)))
    RunDirectory(manifest.stage_directory("rl")).save_groups(8, [Group(question, (half,))])
    (record,) = load_samples(manifest, stage=None, step=8).records
    assert record["turns"][0]["text"] == "Wet \ud800, Grüße."
    assert record["scores"][0]["explanation"] == score.explanation
    assert (record["id"], record["error"], record["prompt"]) == (half.id, half.error, "What is \ud83d?")
    workspace = manifest.directory.parent.parent
    assert "Wet \\ud800, Grüße." in call(capsys, "samples", "--workspace", workspace)[1]
    assert json.loads(call(capsys, "samples", "--workspace", workspace, "--json")[1]) == record


def test_inert_text_keeps_what_people_write() -> None:
    kept = "Grüße, 你好 مرحبا\n👩\u200d👧 می\u200cخواهم ﷽"
    assert inert(kept) == kept
    assert inert("a\tb\x00\x7f\ufeff") == "a\\tb\\x00\\x7f\\ufeff"


@pytest.mark.parametrize(
    ("numbers", "said"), [([], ""), ([4], "4"), ([1, 2, 3], "1 to 3"), ([1, 3, 4, 9], "1, 3 to 4, 9")]
)
def test_numbers_in_a_row_are_said_as_a_range(numbers: list[int], said: str) -> None:
    assert ranges(numbers) == said


def test_the_command_shows_limits_and_says_so(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "samples", "1", "--workspace", tmp_path, "--step", 2, "--limit", 1)
    assert (code, err) == (0, "")
    assert "rl, step 2: 4 answers to 2 prompts" in " ".join(out.split())
    assert "Wet." in out
    assert "A liquid." not in out
    assert out.endswith("1 of 4 answers shown; --limit 4 shows all\n")
    code, out, _ = call(capsys, "samples", manifest.directory, "--worst", 1, "--json")
    (record,) = map(json.loads, out.splitlines())
    assert (code, record["id"], record["turns"][0]["logprobs"]) == (0, "q2/0", [-0.5] * 9)
    code, _, err = call(capsys, "samples", "--workspace", tmp_path, "--best", 1, "--longest", 1)
    assert (code, err) == (2, "error: --best, --worst and --longest exclude each other; give one of them\n")
    code, _, err = call(capsys, "samples", "--workspace", tmp_path, "--step", 4)
    assert (code, err.count("\n")) == (2, 1)
    assert "there are those of 1 to 3, 7" in err
