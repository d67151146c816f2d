"""Labels of every kind out to every format, and back."""

import csv
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from sqlalchemy import insert, select, update
from workbench import A_BETTER, B_BETTER, ROUND, TIE, answer, fill, plain, shown, talked

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import LabelRow, TaskRow
from postgrad.errors import ConfigError, DataError
from postgrad.feedback.exports import export_labels
from postgrad.feedback.imports import import_labels
from postgrad.feedback.pages import Filters, split_of
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Submission
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import Assigned, NewTask, Nothing
from postgrad.feedback.values import Kind
from postgrad.types import Conversation, Example, Message, Preference, ToolCall

LONG = "long \U0001f600 " * 28_000
HEBREW = "\u05e9\u05dc\u05d5\u05dd \u202eabc"
EVERYONE = Filters(rater_kinds=("human", "simulated", "model"))


def label(queue: LabelQueue, person: str, kind: Kind, value: dict[str, Any], **more: Any) -> None:
    got = queue.claim(person, kinds=(kind,))
    assert isinstance(got, Assigned), got
    value = value | talked(queue.store, got, value["turns"]) if "turns" in value else value
    queue.submit(got.id, person, shown(got, value), client_key=f"{got.id}-{got.draft_version}", **more)


def collect(store: LabelStore) -> LabelQueue:
    """At least one label of each kind, and every reason to leave one out."""
    queue = LabelQueue(store, plain())
    comparisons = fill(store, 4)
    queue.add_guideline("Be kind.", author_id="dee")
    queue.add([NewTask("compare", c) for c in comparisons], round_id=ROUND)
    label(queue, "ada", "compare", B_BETTER)
    queue.undo("ada")
    label(queue, "ada", "compare", A_BETTER, rationale="clear", milliseconds=1234)
    label(queue, "ada", "compare", TIE)
    label(queue, "ada", "compare", {"tiers": [[0, 1]], "both_bad": True})
    label(queue, "ada", "compare", {"tiers": [], "cannot_judge": "no idea"})
    golden = fill(store, 1, purpose="gold", first=50)
    queue.add([NewTask("compare", golden[0], answer=A_BETTER)], round_id=ROUND)
    with_gold = LabelQueue(store, plain(exam_tasks=1))
    label(with_gold, "bob", "compare", A_BETTER)
    store.add_prompts([PROMPT_WITH_TOOLS])
    ids = store.add_samples([answer("tools", text) for text in ("one", "two", HEBREW)])
    ranked = store.ask([ids], purpose="train", round_id=ROUND)[0]
    details = {"axes": ["helpful"], "flags": ["rude"]}
    tasks = [
        NewTask("rank", ranked),
        NewTask("edit", ids[0]),
        NewTask("write", "tools"),
        NewTask("rate", ids[0], details),
        NewTask("review", ids[1], {"steps": ["two", "plus", "two"]}),
        NewTask("converse", "p0"),
        NewTask("redteam", "p0", {"harms": ["insult"]}),
    ]
    queue.add(tasks, round_id=ROUND)
    label(queue, "bob", "rank", {"tiers": [[2], [0], [1]]})
    label(queue, "bob", "edit", {"text": LONG})
    label(queue, "bob", "write", {"text": "=1+1"})
    label(queue, "bob", "rate", {"axes": {"helpful": 7}, "flags": ["rude"]})
    label(queue, "bob", "review", {"steps": ["good", "neutral"]})
    said = store.add_samples([answer("p0", "Hi."), answer("p0", "Go away."), answer("p0", "Fine.")])
    turns = [
        {"message": "Hello?", "candidates": said[:2], "order": [1, 0], "chosen": 0},
        {"message": "How are you?", "candidates": said[2:], "order": [0], "chosen": 0},
    ]
    label(queue, "bob", "converse", {"turns": turns})
    label(queue, "bob", "redteam", {"turns": turns, "severity": 1, "harms": ["insult"]})
    store.add_raters("model", {"judge": {"model": "m"}})
    store.answer([Submission(Preference(comparisons[0], "judge", ((1,), (0,))), (0, 1))])
    return queue


PROMPT_WITH_TOOLS = Example(
    "tools",
    Conversation(
        (
            Message("system", "Be brief."),
            Message("user", "Weather?"),
            Message("assistant", "", (ToolCall("c1", "weather", '{"at": "Bonn"}'),)),
            Message("tool", "rain", tool_call_id="c1"),
            Message("user", "So?"),
        ),
        ({"type": "function", "function": {"name": "weather"}},),
    ),
    target="wet",
    metadata={"huge": 2**80, "source": "\u4f60\u597d"},
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def told(arguments: Any) -> list[dict[str, Any]]:
    function = {"name": "weather", "arguments": arguments}
    return [
        {"role": "system", "content": "Be brief."},
        user("Weather?"),
        {**said(""), "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        user("So?"),
    ]


TRL, OPENAI = told({"at": "Bonn"}), told('{"at": "Bonn"}')
TOOLS = [{"type": "function", "function": {"name": "weather"}}]
TALK = [user("Hello?")]


def rows(store: LabelStore, path: Path, format_name: str, **more: Any) -> list[dict[str, Any]]:
    """Of a format that writes JSON lines, exported into one file."""
    export_labels(store, path / "out.jsonl", format_name, **more)
    return [json.loads(line) for line in (path / "out.jsonl").read_text(encoding="utf-8").splitlines()]


def test_trl_preference(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        collect(store)
        ranked = [(HEBREW, "one"), (HEBREW, "two"), ("one", "two")]
        assert rows(store, tmp_path, "trl-preference") == [
            {"prompt": [user("Say p0.")], "chosen": [said("x p0")], "rejected": [said("y p0")]},
            *({"prompt": TRL, "chosen": [said(a)], "rejected": [said(b)], "tools": TOOLS} for a, b in ranked),
            {"prompt": TRL, "chosen": [said(LONG)], "rejected": [said("one")], "tools": TOOLS},
            {"prompt": TALK, "chosen": [said("Hi.")], "rejected": [said("Go away.")]},
        ]


def test_trl_unpaired_says_that_both_are_bad(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        collect(store)
        found = [(r["completion"][0]["content"], r["label"]) for r in rows(store, tmp_path, "trl-unpaired")]
        assert found == [
            ("x p0", True), ("y p0", False), ("x p2", False), ("y p2", False), (HEBREW, True), ("two", False),
            (LONG, True), ("one", False), ("=1+1", True), ("Hi.", True), ("Go away.", False),
        ]  # fmt: skip
        assert set(rows(store, tmp_path, "trl-unpaired")[0]) == {"prompt", "completion", "label"}


def test_demonstrations(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        collect(store)
        assert rows(store, tmp_path, "trl-prompt-completion") == [
            {"prompt": TRL, "completion": [said(text)], "tools": TOOLS} for text in (LONG, "=1+1")
        ]
        assert rows(store, tmp_path, "openai-sft") == [
            {"messages": [*OPENAI, said(text)], "tools": TOOLS} for text in (LONG, "=1+1")
        ]


def test_steps_that_were_read(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        collect(store)
        (row,) = rows(store, tmp_path, "trl-stepwise")
        assert row.keys() == {"prompt", "completions", "labels"}
        assert (row["completions"], row["labels"]) == (["two", "plus"], [True, True])
        assert row["prompt"].endswith("tool: rain\n\nuser: So?")


def test_openai_dpo(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        collect(store)
        found = rows(store, tmp_path, "openai-dpo")
        asked = {"messages": [user("Say p0.")], "tools": [], "parallel_tool_calls": True}
        assert found[0] == {
            "input": asked, "preferred_output": [said("x p0")], "non_preferred_output": [said("y p0")],
        }  # fmt: skip
        assert found[1]["input"]["messages"] == OPENAI
        assert len(found) == 6


def test_hh_leaves_out_what_it_cannot_say(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        collect(store)
        found = rows(store, tmp_path, "hh")
        asked, hello = "\n\nHuman: Say p0.", "\n\nHuman: Hello?"
        assert found == [
            {"chosen": f"{asked}\n\nAssistant: x p0", "rejected": f"{asked}\n\nAssistant: y p0"},
            {"chosen": f"{hello}\n\nAssistant: Hi.", "rejected": f"{hello}\n\nAssistant: Go away."},
        ]
        manifest = json.loads((tmp_path / "out.manifest.json").read_text())
        assert (manifest["labels"], manifest["without_rows"]) == (7, 5)


def test_arena_tells_sides_as_they_were_shown(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        comparisons = fill(store, 4, purpose="arena")
        tiers = [((0,), (1,)), ((0,), (1,)), ((0, 1),), ()]
        for c, t, order in zip(comparisons, tiers, [(0, 1), (1, 0), (1, 0), (0, 1)], strict=True):
            given = Preference(c, "ada", t, both_bad=len(t) == 1, rationale="?")
            store.answer([Submission(given, order)])
        found = rows(store, tmp_path, "arena")
        assert [(r["winner"], r["conversation_a"][-1]["content"]) for r in found] == [
            ("model_a", "x p0"), ("model_b", "y p1"), ("tie (bothbad)", "y p2"),
        ]  # fmt: skip
        assert found[0].keys() == {
            "question_id", "model_a", "model_b", "winner", "judge", "conversation_a", "conversation_b", "turn",
            "anony", "tstamp",
        }  # fmt: skip


def test_tables_hold_every_label_and_defuse_formulas(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        collect(store)
        store.add_prompts([Example("evil", Conversation((Message("user", "@SUM(A1)"),)))])
        ids = store.add_samples([answer("evil", text) for text in ("=cmd|' /C calc'!A0", "+1\t-2")])
        store.answer([Submission(Preference(store.ask([ids], purpose="train", round_id=ROUND)[0], "ada", ((1,), (0,)),
                                            strength=3, rationale="-1"), (0, 1))])  # fmt: skip
        for name in ("csv", "parquet"):
            export_labels(store, tmp_path, name)
        with (tmp_path / "labels.csv").open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(2**20)
            cells = list(csv.DictReader(file))
        table = pyarrow.parquet.read_table(tmp_path / "labels.parquet").to_pylist()
        assert len(cells) == len(table) == 15
        evil = cells[-1]
        assert (evil["prompt"], evil["answer_0"], evil["answer_1"]) == (
            "'@SUM(A1)", "'=cmd|' /C calc'!A0", "'+1\t-2",
        )  # fmt: skip
        assert (evil["rationale"], evil["signed"]) == ("'-1", "-3")
        assert (table[-1]["prompt"], table[-1]["signed"]) == ("@SUM(A1)", -3)
        assert [row["signed"] for row in table[:6]] == [-2, 2, 0, 0, None, 2]
        assert [row["purpose"] for row in table].count("gold") == 1
        assert [row["rater_kind"] for row in table].count("model") == 1
        assert [row["undone_at"] is None for row in table].count(False) == 1


def test_gold_repeats_undone_and_judges_stay_out_of_training(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        comparisons = fill(store, 12)
        queue = LabelQueue(store, plain(repeat_frac=1.0))
        queue.add([NewTask("compare", c) for c in comparisons], round_id=ROUND)
        for _ in range(13):
            label(queue, "ada", "compare", A_BETTER)
        assert len(list(store.preferences(purpose="train"))) == 12 == len(rows(store, tmp_path, "trl-preference"))
        assert len(rows(store, tmp_path, "native")) == 2 + 13
        store.add_raters("model", {"judge": {}})
        store.answer([Submission(Preference(comparisons[0], "judge", ((1,), (0,))), (0, 1))])
        assert len(rows(store, tmp_path, "trl-preference")) == 12
        assert len(rows(store, tmp_path, "trl-preference", filters=EVERYONE)) == 13
        with pytest.raises(ConfigError, match="never exported as trl-preference"):
            rows(store, tmp_path, "trl-preference", filters=Filters(purpose="gold"))
        with pytest.raises(DataError, match="no label passes the filters"):
            rows(store, tmp_path, "trl-preference", filters=Filters(round_id="other"))


def test_a_native_export_fills_an_empty_store_that_exports_the_same_bytes(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        collect(store)
        manifest = export_labels(store, tmp_path / "first", "native")
        counts = {**store.counts(), "raters": 4}  # one of them has said nothing
    assert manifest.labels == 14
    assert manifest.guidelines == [1]
    first = (tmp_path / "first/labels.jsonl").read_bytes()
    assert f'"huge": {2**80}'.encode() in first
    with LabelStore(sqlite_url(tmp_path / "other.db")) as other:
        for _ in range(2):
            found = import_labels(other, tmp_path / "first/labels.jsonl", "native")
            assert (found.labels, other.counts()) == (14, counts)
        export_labels(other, tmp_path / "second", "native")
    assert (tmp_path / "second/labels.jsonl").read_bytes() == first


def test_restored_tasks_are_done_and_guidelines_go_on(url: str, tmp_path: Path) -> None:
    with LabelStore(sqlite_url(tmp_path / "source.db")) as source:
        collect(source)
        export_labels(source, tmp_path, "native")
    with LabelStore(url) as store:
        import_labels(store, tmp_path / "labels.jsonl", "native")
        queue = LabelQueue(store, plain())
        store.add_raters("human", {"new": {}})
        assert isinstance(queue.claim("new"), Nothing)
        assert queue.add_guideline("Be brief.", author_id="dee") == 2
        with store.reading() as session:
            places = session.execute(select(TaskRow.done, TaskRow.free, TaskRow.overlap).where(~TaskRow.gold)).all()
        assert set(places) == {(1, 0, 1)}
        export_labels(store, tmp_path / "again", "native")
    assert (tmp_path / "again/labels.jsonl").read_bytes() == (tmp_path / "labels.jsonl").read_bytes()


def test_no_prompt_is_both_trained_on_and_held_out(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        comparisons = fill(store, 200)
        for person in ("ada", "bob"):
            store.answer(Submission(Preference(c, person, ((0,), (1,))), (0, 1)) for c in comparisons)
        manifest = export_labels(store, tmp_path, "trl-preference", valid_share=0.2)
        asked = {
            name: {json.loads(line)["prompt"][0]["content"] for line in (tmp_path / name).read_text().splitlines()}
            for name in ("train.jsonl", "valid.jsonl")
        }
        assert not asked["train.jsonl"] & asked["valid.jsonl"]
        assert asked["valid.jsonl"] == {f"Say p{i}." for i in range(200) if split_of(f"p{i}", 0.2) == "valid"}
        assert 20 < len(asked["valid.jsonl"]) < 60
        assert [file["rows"] for file in manifest.files] == [2 * len(own) for own in asked.values()]
        for file in json.loads((tmp_path / "manifest.json").read_text())["files"]:
            assert file["sha256"] == hashlib.sha256((tmp_path / file["name"]).read_bytes()).hexdigest()
        assert sorted(p.name for p in tmp_path.glob("*") if "db" not in p.name) == [
            "manifest.json", "train.jsonl", "valid.jsonl",
        ]  # fmt: skip


def number(store: LabelStore, comparisons: list[str], numbers: list[int]) -> None:
    """Labels under these numbers."""
    value = {"tiers": [[0], [1]], "strength": None, "both_bad": False, "cannot_judge": ""}
    same = {"kind": "compare", "rater_id": "ada", "value": value, "rationale": "", "weight": 0.1 + 0.2}
    rows = [
        {**same, "id": n, "prompt_id": f"p{i % 3}", "comparison_id": comparisons[i % 3], "client_key": str(n),
         "display_order": f"{i},0", "created_at": datetime(2026, 1, 1, tzinfo=UTC)} for i, n in enumerate(numbers)
    ]  # fmt: skip
    with store.writing() as session:
        session.execute(insert(LabelRow), rows)


def test_pages_lose_nothing_at_their_edges_nor_in_gaps(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        numbers = [7, 506, 507, 1006, 1007, 9000]
        number(store, fill(store, 3), numbers)
        found = rows(store, tmp_path, "native")
        assert [r["key"] for r in found if r["type"] == "label"] == [str(n) for n in numbers]
        assert found[-1]["weight"] == 0.1 + 0.2


def test_an_export_is_one_snapshot(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        number(store, fill(store, 3), list(range(1, 1202)))

        def undo_everything(done: float) -> None:
            with store.writing() as session:
                session.execute(update(LabelRow).values(undone_at=datetime(2026, 1, 2, tzinfo=UTC)))

        assert len(rows(store, tmp_path, "trl-preference", on_page=undo_everything)) == 1201
        with pytest.raises(DataError, match="no label passes"):
            rows(store, tmp_path, "trl-preference")


def test_a_failed_export_leaves_the_old_file_and_no_rest(url: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with LabelStore(url) as store:
        collect(store)
        export_labels(store, out, "trl-preference")
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(KeyboardInterrupt):
            export_labels(store, out, "trl-preference", filters=EVERYONE, on_page=interrupt)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def interrupt(done: float) -> None:
    raise KeyboardInterrupt
