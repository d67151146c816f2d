"""A label to the rows of a training format: pure functions, one a format.

What each of them loses is in docs/labels-exchange.md. Sources:
TRL: huggingface/trl, docs/source/dataset_formats.md. OpenAI: developers.openai.com, guides "supervised fine-tuning" and
"direct preference optimization". HH: anthropics/hh-rlhf. Arena: lm-sys/FastChat, clean_battle_data.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from postgrad.feedback.records import Purpose
from postgrad.feedback.values import BETWEEN, Kind

Row = dict[str, Any]
Messages = list[dict[str, Any]]

FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


class Labelled(NamedTuple):
    """A label with all that it is about, as the exporter reads it."""

    label: Any
    """Columns of the label, its round, purpose and rater kind."""
    value: Mapping[str, Any]
    prompt: Any
    messages: Messages
    tools: Sequence[Any]
    split: str
    samples: Sequence[Any]
    """`id`, `text` and `checkpoint` of each answer; of a conversation, of every candidate."""


class Piece(NamedTuple):
    """Rows that stand together in a file."""

    data: Any
    """bytes, or the rows themselves where the format is Parquet."""
    num_rows: int
    is_news: bool = False
    """A round, rater or guideline, which another process may have told before."""


class Format(NamedTuple):
    rows: Callable[[Labelled], Iterator[Row]]
    kinds: tuple[Kind, ...]
    """Those that it can say something of; none means all."""
    purpose: Purpose | None
    """Where nobody names one; None is all of them."""
    suffix: str
    splits: bool = False
    """Into train and valid; what does not split marks its rows, or leaves it to the reader."""
    everything: bool = False
    """Undone labels, gold, repeats and raters of every kind too."""


def trl_preference(one: Labelled) -> Iterator[Row]:
    for messages, better, worse in _pairs(one):
        row = {"prompt": _for_trl(messages), "chosen": [_assistant(better)], "rejected": [_assistant(worse)]}
        yield _with_tools(row, one)


def trl_unpaired(one: Labelled) -> Iterator[Row]:
    for messages, text, good in _verdicts(one):
        yield _with_tools({"prompt": _for_trl(messages), "completion": [_assistant(text)], "label": good}, one)


def trl_prompt_completion(one: Labelled) -> Iterator[Row]:
    row = {"prompt": _for_trl(one.messages), "completion": [_assistant(one.value["text"])]}
    yield _with_tools(row, one)


def trl_stepwise(one: Labelled) -> Iterator[Row]:
    """Steps as text; a neutral one counts as good (Lightman et al., 2023, arXiv 2305.20050)."""
    verdicts = one.value["steps"]
    steps = json.loads(one.label.details)["steps"][: len(verdicts)]
    yield {"prompt": plain_text(one.messages), "completions": steps, "labels": [v != "bad" for v in verdicts]}


def openai_sft(one: Labelled) -> Iterator[Row]:
    yield _with_tools({"messages": [*_for_openai(one.messages), _assistant(one.value["text"])]}, one)


def openai_dpo(one: Labelled) -> Iterator[Row]:
    for messages, better, worse in _pairs(one):
        asked = {"messages": _for_openai(messages), "tools": one.tools, "parallel_tool_calls": True}
        yield {
            "input": asked,
            "preferred_output": [_assistant(better)],
            "non_preferred_output": [_assistant(worse)],
        }


def hh(one: Labelled) -> Iterator[Row]:
    """Nothing of a conversation with tools, or of a text that holds the format's own marks."""
    for messages, better, worse in _pairs(one):
        said = _hh_text(messages)
        if said is not None and not any(mark in text for mark in _HH_MARKS.values() for text in (better, worse)):
            yield {"chosen": said + _hh_turn("assistant", better), "rejected": said + _hh_turn("assistant", worse)}


def arena(one: Labelled) -> Iterator[Row]:
    """Model a is the one that was shown first; abstentions are no battles."""
    if len(one.samples) != 2 or not one.value["tiers"]:
        return
    first = int(one.label.display_order.split(",")[0])
    a, b = one.samples[first], one.samples[1 - first]
    tiers = one.value["tiers"]
    if len(tiers) == 2:
        winner = "model_a" if tiers[0][0] == first else "model_b"
    else:
        winner = "tie (bothbad)" if one.value["both_bad"] else "tie"
    yield {
        "question_id": one.label.comparison_id,
        "model_a": a.checkpoint,
        "model_b": b.checkpoint,
        "winner": winner,
        "judge": one.label.rater_id,
        "conversation_a": [*_for_openai(one.messages), _assistant(a.text)],
        "conversation_b": [*_for_openai(one.messages), _assistant(b.text)],
        "turn": sum(m["role"] == "user" for m in one.messages),
        "anony": True,
        "tstamp": one.label.created_at.timestamp(),
    }


def table(one: Labelled) -> Iterator[Row]:
    """One flat row a label; the columns of CSV and Parquet."""
    label, value = one.label, one.value
    texts = [sample.text for sample in one.samples]
    checkpoints = [sample.checkpoint for sample in one.samples]
    yield {
        "label": label.id,
        "kind": label.kind,
        "round": label.round_id,
        "purpose": label.purpose,
        "split": one.split,
        "rater": label.rater_id,
        "rater_kind": label.rater_kind,
        "guideline": label.guideline,
        "repeat": bool(label.repeat),
        "created_at": label.created_at.isoformat(),
        "undone_at": label.undone_at.isoformat() if label.undone_at else None,
        "milliseconds": label.milliseconds,
        "weight": label.weight,
        "prompt_id": label.prompt_id,
        "prompt": plain_text(one.messages),
        "answer_0": texts[0] if texts else None,
        "answer_1": texts[1] if len(texts) > 1 else None,
        "other_answers": _json(texts[2:]) if len(texts) > 2 else None,
        "checkpoint_0": checkpoints[0] if texts else None,
        "checkpoint_1": checkpoints[1] if len(texts) > 1 else None,
        "display_order": label.display_order,
        "signed": signed(value, len(texts)) if label.kind in BETWEEN else None,
        "text": value.get("text"),
        "rationale": label.rationale,
        "value": _json(value),
    }


COLUMNS: Final[Mapping[str, type]] = {
    "label": int, "kind": str, "round": str, "purpose": str, "split": str, "rater": str, "rater_kind": str,
    "guideline": int, "repeat": bool, "created_at": str, "undone_at": str, "milliseconds": int, "weight": float,
    "prompt_id": str, "prompt": str, "answer_0": str, "answer_1": str, "other_answers": str, "checkpoint_0": str,
    "checkpoint_1": str, "display_order": str, "signed": int, "text": str, "rationale": str, "value": str,
}  # fmt: skip
"""Of `table`, in order."""


def signed(value: Mapping[str, Any], num_answers: int) -> int | None:
    """-3 (answer 1 much better) to 3 (answer 0 much better); ungraded choices are 1, ties 0, anything else None."""
    if num_answers != 2 or not value["tiers"]:
        return None
    if len(value["tiers"]) == 1:
        return 0
    strength: int = value["strength"] or 1
    return strength if value["tiers"][0][0] == 0 else -strength


def defused(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: an apostrophe goes before what begins like one."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


def plain_text(messages: Messages) -> str:
    """A single user message as it is, anything longer with the role before each turn."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


def _pairs(one: Labelled) -> Iterator[tuple[Messages, str, str]]:
    """(prompt, better, worse) wherever somebody preferred one text over another."""
    if one.label.kind == "edit":
        found = [(one.messages, one.value["text"], one.samples[0].text)]
    elif one.label.kind == "converse":
        found = [
            (messages, texts[chosen], text)
            for messages, texts, chosen in _turns(one)
            for i, text in enumerate(texts)
            if i != chosen
        ]
    else:
        tiers, samples = one.value["tiers"], one.samples
        found = [
            (one.messages, samples[better].text, samples[worse].text)
            for i, tier in enumerate(tiers)
            for lower in tiers[i + 1 :]
            for better in tier
            for worse in lower
        ]
    for messages, better, worse in found:
        if better != worse:
            yield messages, better, worse


def _verdicts(one: Labelled) -> Iterator[tuple[Messages, str, bool]]:
    """(prompt, text, good): the best and the worst of a ranking, what lies between not; both of "both bad" are bad."""
    kind, value = one.label.kind, one.value
    if kind in BETWEEN:
        tiers = value["tiers"]
        if value["both_bad"]:
            yield from ((one.messages, one.samples[i].text, False) for i in tiers[0])
        elif len(tiers) > 1:
            yield from ((one.messages, one.samples[i].text, True) for i in tiers[0])
            yield from ((one.messages, one.samples[i].text, False) for i in tiers[-1])
    elif kind == "converse":
        for messages, texts, chosen in _turns(one):
            if len(texts) > 1:
                yield from ((messages, text, i == chosen) for i, text in enumerate(texts))
    else:
        yield one.messages, value["text"], True
        if kind == "edit" and one.samples[0].text != value["text"]:
            yield one.messages, one.samples[0].text, False


def _turns(one: Labelled) -> Iterator[tuple[Messages, list[str], int]]:
    """(conversation up to the labeler's message, the candidates' texts, which one went on) of each turn.

    A prompt's own last message, where a user says it, was a suggestion for the first turn's.
    """
    texts = {sample.id: sample.text for sample in one.samples}
    said = one.messages[:-1] if one.messages and one.messages[-1]["role"] == "user" else one.messages
    for turn in one.value["turns"]:
        said = [*said, {"role": "user", "content": turn["message"]}]
        candidates = [texts[sample_id] for sample_id in turn["candidates"]]
        yield said, candidates, turn["chosen"]
        said = [*said, _assistant(candidates[turn["chosen"]])]


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _with_tools(row: Row, one: Labelled) -> Row:
    if one.tools:
        row["tools"] = one.tools
    return row


def _for_openai(messages: Messages) -> Messages:
    return [_called(m, lambda raw: raw) if "tool_calls" in m else m for m in messages]


def _for_trl(messages: Messages) -> Messages:
    return [_called(m, _parsed) if "tool_calls" in m else m for m in messages]


def _called(message: dict[str, Any], arguments: Callable[[str], Any]) -> dict[str, Any]:
    calls = [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": arguments(call["arguments"])},
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _parsed(raw: str) -> Any:
    """Arguments as chat templates take them; what a model garbled stays text."""
    try:
        return json.loads(raw)
    except ValueError:
        return raw


_HH_MARKS: Final = {"user": "\n\nHuman:", "assistant": "\n\nAssistant:"}


def _hh_turn(role: str, text: str) -> str:
    return f"{_HH_MARKS[role]} {text}"


def _hh_text(messages: Messages) -> str | None:
    """The prompt, a system message at the head of the first turn; None where the format cannot say it."""
    if any(mark in m["content"] for mark in _HH_MARKS.values() for m in messages):
        return None
    system = [m["content"] for m in messages if m["role"] == "system"]
    turns = [m for m in messages if m["role"] != "system"]
    if not turns or any(m["role"] == "tool" or "tool_calls" in m for m in turns):
        return None
    texts = ["\n\n".join([*system, turns[0]["content"]]), *(m["content"] for m in turns[1:])]
    return "".join(_hh_turn(m["role"], text) for m, text in zip(turns, texts, strict=True))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_PAIRED: Final[tuple[Kind, ...]] = (*BETWEEN, "edit", "converse")
FORMATS: Final[Mapping[str, Format]] = {
    "trl-preference": Format(trl_preference, _PAIRED, "train", ".jsonl", splits=True),
    "trl-unpaired": Format(trl_unpaired, (*_PAIRED, "write"), "train", ".jsonl", splits=True),
    "trl-prompt-completion": Format(trl_prompt_completion, ("edit", "write"), "train", ".jsonl", splits=True),
    "trl-stepwise": Format(trl_stepwise, ("review",), "train", ".jsonl", splits=True),
    "openai-sft": Format(openai_sft, ("edit", "write"), "train", ".jsonl", splits=True),
    "openai-dpo": Format(openai_dpo, _PAIRED, "train", ".jsonl", splits=True),
    "hh": Format(hh, _PAIRED, "train", ".jsonl", splits=True),
    "arena": Format(arena, ("compare", "adjudicate"), None, ".jsonl"),
    "csv": Format(table, (), None, ".csv", everything=True),
    "parquet": Format(table, (), None, ".parquet", everything=True),
}
