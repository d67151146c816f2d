import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fabricate import ARENA, GATE, SUMMARIES, answer_rows, fabricate_round

from postgrad.errors import DataError, StoreError, TrainingDiverged
from postgrad.rounds.numbers import (
    format_bytes,
    format_duration,
    format_findings,
    format_number,
    format_percent,
    format_signed,
)
from postgrad.rounds.report import write_report
from postgrad.run import RunDirectory
from postgrad.watch import RunWatch

VOID = {"meta", "br", "img", "link", "input", "hr"}
ACTIVE = {"script", "img", "iframe", "object", "embed", "link", "base", "form", "video", "audio", "source", "image"}


class Page(HTMLParser):
    """A page as a browser would take it apart: elements, attributes, and the text of every element id's subtree."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str | None]] = []
        self.words: dict[str, list[str]] = {"": []}
        self.feed(self.html)
        self.close()
        assert self.open == [], "an element was not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self.open.pop()
        assert opened == tag, f"<{opened}> closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        if not any(tag in ("style", "svg") for tag, _ in self.open):
            for name in ["", *(identifier for _, identifier in self.open if identifier)]:
                self.words.setdefault(name, []).append(data)

    def text(self, section: str = "") -> str:
        return " ".join(" ".join(self.words[section]).split())

    def charts(self) -> list[str]:
        return [attrs["aria-label"] or "" for tag, attrs in self.tags if tag == "svg"]


def page_of(workspace: Path, **options: Any) -> Page:
    """The report of a round without curves, which take the longest to draw."""
    return Page(write_report(fabricate_round(workspace, metrics=False, **options).directory))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(fabricate_round(tmp_path_factory.mktemp("whole")).directory))


@pytest.fixture(scope="module")
def plain_tags(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return {tag for tag, _ in page_of(tmp_path_factory.mktemp("plain"), answers=answer_rows(20)).tags}


def test_the_header_gives_the_verdict_and_says_that_raters_were_simulated(whole: Page) -> None:
    text = whole.text()
    assert "Gate: pass PPO beats the initial policy and may be released." in text
    assert "It won 64.8% of the held-out comparisons (95% interval 59.0% to 70.3%). None of 4 guards tripped." in text
    assert "Win rate over initial 64.8% 59.0% to 70.3% Elo gained +105" in text
    assert "Reward-model accuracy 71.2% the shorter answer: 55.3% KL from the reference 4.31" in text
    assert "Simulated raters stood in for people. Every label and every judgement in the arena came from" in text
    assert "no evidence about what people would prefer" in text


def test_what_changed_names_model_recipe_versions_hashes_and_the_keys_that_differ(tmp_path: Path) -> None:
    fabricate_round(tmp_path, seed=0, steps=12)
    page = page_of(tmp_path, seed=1, steps=24)
    text = page.text("changed")
    assert "smollm2-135m 3f8a3f8a3f8a" in text
    assert "postgrad 0.1.0, python 3.11.7, torch 2.13.0, transformers 5.16.0" in text
    assert "512 sft, 400 rm, 600 rl, 96 heldout, 48 heldout unseen" in text
    assert "1,234 preferences over 400 comparisons, 8.8% tied" in text
    assert "Changed in the recipe 0001-quickstart This round seed 0 1 rl.steps 12 24 The whole recipe" in text
    arena = tmp_path / "rounds" / "0002-quickstart" / "stages" / "arena" / "arena.json"
    assert f"wrote {hashlib.sha256(arena.read_bytes()).hexdigest()} stages/arena/arena.json" in text


def test_the_gate_lists_every_guard_and_reason(tmp_path: Path) -> None:
    guards = [dict(GATE["guards"][0]), {**GATE["guards"][3], "value": 21.5, "ok": False}]
    gate = {**GATE, "verdict": "fail", "guards": guards, "reasons": ["kl is 21.5, above its limit of 20"]}
    page = page_of(tmp_path, gate=gate)
    assert "Gate: fail PPO may not replace the initial policy." in page.text()
    assert "1 of 2 guards tripped : KL." in page.text()
    text = page.text("gate")
    assert "Improvement 59.0% 50.0% met" in text
    assert "Length ratio 0.524 1.50 clear Mean answer length against the incumbent's." in text
    assert "KL 21.5 20 tripped Nats an answer from the reference." in text
    assert "kl is 21.5, above its limit of 20" in text


def test_the_arena_shows_ratings_intervals_and_win_tie_loss(whole: Page) -> None:
    text = whole.text("arena")
    assert "PPO 1056 1035 to 1079 17.5 4.2% SFT 993 975 to 1012 24.1 29.2% Initial 951 931 to 970 33.4 62.5%" in text
    assert "PPO over Initial 64.8% 59.0% to 70.3% 66.1% 171 31 86 144" in text
    assert "PPO over SFT 56.2% 50.5% to 61.8% – 142 40 106 144" in text, "arenas of earlier versions have none"
    styles = [attrs.get("style") or "" for tag, attrs in whole.tags if tag == "i"]
    assert "left:59.03%;width:11.28%" in styles
    assert "left:64.76%" in styles


def test_measures_outside_every_reward_come_first_and_only_changes_clear_of_zero_are_bold(whole: Page) -> None:
    text = whole.text("measures")
    assert "Reference F1 unrewarded 0.211 0.231 0.251 +0.040 +0.012 to +0.068 Question echo unrewarded" in text
    assert text.index("Question echo unrewarded") < text.index("Constraints met rewarded")
    assert '<td class="n strong">+0.040</td>' in whole.html
    assert '<td class="n muted">0</td>' in whole.html


def test_every_curve_is_drawn_once_from_its_metrics(whole: Page) -> None:
    assert whole.charts() == [
        "Reward over 24 steps (rl)",
        "KL from the reference over 24 steps (rl)",
        "Answer length over 24 steps (rl)",
        "Entropy over 24 steps (rl)",
        "Truncated answers over 24 steps (rl)",
        "Explained variance over 23 steps (rl)",
        "Reliability of the reward model, as it is",
        "Reliability of the reward model, after a temperature",
        "What one change adds to the reward, in its standard deviations",
        "Accuracy. By how far apart the rewards are",
        "Accuracy. By length",
        "Accuracy. By rater",
        "Loss over 25 steps (reward)",
        "Loss over 40 steps (sft)",
        "Gradient norm over 40 steps (sft)",
    ]
    assert "24 steps took the mean reward from \u22120.412 to 1.19 at 4.31 nats an answer" in whole.text("rl")
    assert "512 demonstrations took the loss from 2.41 to 1.73 nats a token" in whole.text("sft")


def test_a_metric_outside_its_healthy_range_is_marked(tmp_path: Path) -> None:
    manifest = fabricate_round(tmp_path, until="rl")
    assert "outside its usual range" not in Page(write_report(manifest.directory)).text("rl")
    with open(manifest.stage_directory("rl") / "metrics.jsonl", "a") as file:
        file.write('{"step": 25, "policy/kl_ref": 14.2}\n')
    text = Page(write_report(manifest.directory)).text("rl")
    assert "14.2 KL from the reference, nats an answer (k1) outside its usual range" in text


def test_the_warnings_of_every_stage_are_listed_with_what_to_turn(tmp_path: Path, whole: Page) -> None:
    assert "None: every curve stayed where a healthy run's does." in whole.text("warnings")
    manifest = fabricate_round(tmp_path, until="reward")
    for stage, rows in {
        "sft": [{"loss/nll": 9.0}] * 3,
        "reward": [{"sampler/logprob_diff_max": 1.0}],
    }.items():
        run = RunDirectory(manifest.stage_directory(stage))
        for step, row in enumerate(rows, start=41):
            run.write_metrics(step, row)
        RunWatch(run).update()
    page = Page(write_report(manifest.directory))
    text = page.text("warnings")
    assert "sft step 43 Loss Loss rose by" in text
    assert text.count("sft step") == 1
    assert (
        "reward step 41 Sampler minus trainer Sampler minus trainer at 1, above the healthy 0.0002 (largest |sampler "
        "- trainer| logprob of a sampled token, nats). On a CPU in float32 this is a defect, since engine and trainer "
        "share their modules and rounding alone stays below 1e-4"
    ) in text
    assert {"href": "#warnings"} in [attrs for tag, attrs in page.tags if tag == "a"]


def test_a_warning_is_inert_text_and_a_command_in_it_is_set_as_code(tmp_path: Path) -> None:
    manifest = fabricate_round(tmp_path, until="sft")
    warning = {"step": 1, "rule": "range", "metric": "<b>", "message": "<i>x</i>", "advice": "run `<u> a`, then </p>"}
    RunDirectory(manifest.stage_directory("sft")).write_warning(warning)
    page = Page(write_report(manifest.directory))
    assert "sft step 1 <b> <i>x</i>. Run <u> a , then </p>." in page.text("warnings")
    assert "<code>&lt;u&gt; a</code>" in page.html


def test_the_reward_model_stands_beside_its_baseline(whole: Page) -> None:
    text = whole.text("reward")
    assert "On 160 held-out pairs it agrees with the label in 71.2% (95% interval 64.2% to 77.6%)" in text
    assert "Reward model 71.2% 64.2% to 77.6%" in text
    assert "the shorter answer 55.3% 48.3% to 62.3% 15.9% 8.9% to 22.9%" in text
    assert "Two raters of one question agree in 74.0%" in text
    assert "for all it is 1.18, and above 1 means overconfident. Calibration error 0.031" in text
    assert "c0dec0dec0de" in text


def test_time_tokens_and_memory_are_given_for_every_stage_and_summed(whole: Page) -> None:
    text = whole.text("cost")
    assert re.search(r"rl done 6 min 4\d s 58,330 233,320 116,660 3\.09 GB", text)
    assert re.search(r"Round 12 min \d\d s 90,222 335,543 129,060 3\.71 GB", text)


def test_twenty_samples_are_picked_by_the_hash_of_their_prompt_ids(tmp_path: Path) -> None:
    rows = answer_rows()
    for row in rows:
        row["prompt"] = f"Question {row['prompt_id']}?"
    text = page_of(tmp_path, answers=rows).text("samples")
    by_hash = sorted((row["prompt_id"] for row in rows), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert re.findall(r"Question (dolly-\d+)\?", text) == by_hash[:20]
    assert "20 of 30 held-out prompts, not chosen by hand" in text


def test_a_sample_shows_all_answers_with_their_utility_and_marks_the_single_best(tmp_path: Path) -> None:
    rows = answer_rows(6)
    page = page_of(tmp_path, answers=rows)
    assert "PPO +2.25 Answer: iron is best explained in one short sentence, number 1. 15 tokens" in page.text("samples")
    assert "Initial \u22120.51 Well, iron is a really interesting thing" in page.text("samples")
    assert page.html.count('<span class="best">') == 4, "two of six prompts have their highest utility twice"


HOSTILE = [
    "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>",
    '"></div></article><style>*{display:none}</style>',
    "{{ 7*7 }}{% raw %} &lt;b&gt; </pre>",
    "\u202eright to left\u202c مرحبا שלום 👩\u200d👩\u200d👧 \x00\x1b[31m",
    "x" * 20_000,
    "",
    "\ud83d lone surrogate",
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=["script", "markup", "template", "bidi", "long", "empty", "surrogate"])
def test_whatever_models_and_people_wrote_is_inert_text(tmp_path: Path, plain_tags: set[str], hostile: str) -> None:
    rows = answer_rows(20)
    for answer in rows[3]["answers"].values():
        answer["text"] = hostile
    rows[3] |= {"prompt": hostile, "reference": hostile, "constraints": [{"kind": "starts_with", "value": hostile}]}
    page = page_of(tmp_path, answers=rows, gate={**GATE, "reasons": [hostile]})
    assert not ACTIVE & {tag for tag, _ in page.tags}
    assert {name for _, attrs in page.tags for name in attrs if name.startswith("on")} == set()
    assert {tag for tag, _ in page.tags} == plain_tags
    if hostile:
        shown = hostile.replace("\x00", "\u2400").replace("\x1b", "\u241b").replace("\ud83d", "\ufffd")
        assert "".join(page.words["samples"]).count(shown) >= 4
    else:
        assert page.text("samples").count("(empty)") == 3


def test_the_page_asks_for_nothing_and_has_no_script(whole: Page) -> None:
    assert not ACTIVE & {tag for tag, _ in whole.tags}
    for _, attrs in whole.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attrs.get(name) or "#").startswith("#")
    assert "url(http" not in whole.html
    assert "@import" not in whole.html
    policy = next(attrs["content"] for tag, attrs in whole.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "prefers-color-scheme: dark" in whole.html
    identifiers = [attrs["id"] for _, attrs in whole.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))


def test_stages_that_were_not_reached_are_said_to_be_missing(tmp_path: Path) -> None:
    page = page_of(tmp_path, until="reward")
    assert "Unfinished This round has no verdict yet." in page.text()
    for section in ("gate", "arena", "measures", "rl", "samples"):
        assert page.text(section).endswith("Not reached."), section
    assert "rl not reached \u2013 \u2013 \u2013 \u2013 \u2013" in page.text("cost")
    assert "On 160 held-out pairs" in page.text("reward")


def test_a_stage_that_failed_shows_its_error_and_the_curves_so_far(tmp_path: Path) -> None:
    manifest = fabricate_round(tmp_path, until="reward")
    metrics = manifest.stage_directory("rl") / "metrics.jsonl"
    metrics.parent.mkdir()
    metrics.write_text('{"step": 1, "reward/mean": 0.5}\n{"step": 2, "rew')
    with pytest.raises(TrainingDiverged), manifest.stage("rl", inputs={}):
        raise TrainingDiverged("loss is not finite at step 2 <b>")
    page = Page(write_report(manifest.directory))
    assert "Stopped This round stopped in stage rl." in page.text()
    assert "Failed loss is not finite at step 2 <b>" in page.text("rl")
    assert "Reward over 1 steps (rl)" in page.charts()


def test_a_summary_without_a_number_shows_a_dash(tmp_path: Path) -> None:
    summaries = {**SUMMARIES, "labels": {"num_comparisons": 5, "num_preferences": 5, "tie_frac": None}}
    text = page_of(tmp_path, summaries=summaries).text("changed")
    assert "5 preferences over 5 comparisons, \u2013 tied Rater agreement \u2013" in text


def test_a_released_incumbent_is_a_fourth_player(tmp_path: Path) -> None:
    manifest = fabricate_round(tmp_path, metrics=False)
    arena = json.loads(json.dumps(ARENA))
    arena["players"]["released"] = arena["players"]["sft"]
    (manifest.stage_directory("arena") / "arena.json").write_text(json.dumps(arena))
    gate = {**GATE, "incumbent": "released"}
    (manifest.stage_directory("gate") / "gate.json").write_text(json.dumps(gate))
    page = Page(write_report(manifest.directory))
    assert "PPO beats the released policy and may be released." in page.text()
    assert "Released 993" in page.text("arena")


def test_a_broken_or_missing_file_is_named(tmp_path: Path) -> None:
    manifest = fabricate_round(tmp_path, metrics=False)
    path = manifest.stage_directory("arena") / "arena.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"stages/arena/arena\.json is not JSON"):
        write_report(manifest.directory)
    path.unlink()
    with pytest.raises(DataError, match=r"stages/arena/arena\.json is missing, though its stage is done"):
        write_report(manifest.directory)
    with pytest.raises(StoreError, match="has no manifest"):
        write_report(tmp_path / "nowhere")


def test_the_same_round_gives_the_same_page(tmp_path: Path) -> None:
    directory = fabricate_round(tmp_path).directory
    first = write_report(directory).read_bytes()
    assert write_report(directory).read_bytes() == first


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "\u2013"), (0.0, "0"), (20.0, "20"), (12345.6, "12,346"), (345.6, "346"), (34.56, "34.6"),
        (3.456, "3.46"), (0.3456, "0.346"), (9.5e-7, "9.5e-07"), (-0.25, "\u22120.250"), (-3e-5, "\u22123.0e-05"),
    ],
)  # fmt: skip
def test_numbers_have_about_three_digits(value: float | None, shown: str) -> None:
    assert format_number(value) == shown


def test_findings_carry_their_intervals_and_lists_are_left_out() -> None:
    summary = {
        "steps": 1200, "stopped": None, "why": "-1", "bins": [1], "gain": -0.25, "gain_low": -0.5, "gain_high": None,
        "room_low": 2, "tokens": 21.87654, "tokens_low": 9.87654, "tokens_high": 1234.5,
        "ratio": math.inf,
    }  # fmt: skip
    assert format_findings(summary) == [
        ("steps", "1,200"),
        ("why", "-1"),
        ("gain", "\u22120.2500 [\u22120.5000,\u00a0\u2013]"),
        ("room_low", "2"),
        ("tokens", "21.9 [9.8765,\u00a01,234]"),
        ("ratio", "inf"),
    ]


def test_other_quantities_have_their_units() -> None:
    assert (format_signed(0.25), format_signed(-0.25), format_signed(0.0)) == ("+0.250", "\u22120.250", "0")
    assert (format_percent(0.63214), format_percent(-0.01), format_percent(None)) == ("63.2%", "\u22121.0%", "\u2013")
    assert [format_duration(s) for s in (4.24, 59.97, 754, 7500)] == [
        "4.2 s",
        "1 min 00 s",
        "12 min 34 s",
        "2 h 05 min",
    ]
    assert (format_bytes(1.536e9), format_bytes(42.1e6)) == ("1.54 GB", "42.1 MB")
