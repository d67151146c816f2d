"""Files of other people's comparisons to pairs: pure functions of a row, which raise BadRow with what is wrong.

Odd pairs come through, to be counted: equal or empty answers, prompts that differ. HH and WebGPT: see `foreign`.
HelpSteer: nvidia/HelpSteer2, one answer a row with its scores. HelpSteer3: nvidia/HelpSteer3, two answers and a
preference from -3, the first is much better, to 3. "pairs" and "unpaired": TRL's preference format, with or without
its own prompt, and its format of answers that were judged alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from postgrad.config.pairs import PairSourceConfig
from postgrad.data import readers
from postgrad.feedback.foreign import Row, hh_turns, webgpt_sides
from postgrad.feedback.intake import MAX_MB, BadRow, BadRows, items, read_rows, text
from postgrad.feedback.pairs import Answered, Found, Label, Pair, Verdict, prompt_id_of
from postgrad.types import Conversation, Message

Messages = tuple[Message, ...]
Tools = tuple[Mapping[str, Any], ...]

_STRENGTHS: Final = 3


class PairFile(NamedTuple):
    found: list[Found]
    left_out: int
    """Rows below `at_least`."""
    unreadable: list[str]
    """Where rows stand that are no pairs."""


def read_pair_file(path: Path, cfg: PairSourceConfig, *, stop: bool) -> PairFile:
    """All pairs of a file.

    Args:
        path: of the file.
        cfg: its format and filter.
        stop: whether a row that is no pair is an error.

    Raises:
        DataError: the file cannot be read, holds nothing, or holds rows that are no pairs: all of them, by line.
    """
    bad, found, total = BadRows(path), [], 0
    left_out = 0
    unreadable: list[str] = []
    read = _Scores(cfg.attribute) if cfg.format == "helpsteer" else _READERS[cfg.format]
    for line, row in _rows(path):
        total += 1
        try:
            if isinstance(row, BadRow):
                raise row
            if any(_number(row, key) < least for key, least in cfg.at_least.items()):
                left_out += 1
                continue
            where = f"{path.name} line {line}"
            found += [Found(_named(label, path, cfg), where, differ) for label, differ in read(row)]
        except BadRow as e:
            unreadable.append(f"{path.name} line {line}")
            if stop:
                bad.add(line, e)
    bad.check(total, skip=False)
    return PairFile(found[: cfg.max_pairs], left_out, unreadable)


def _rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    """A Parquet file writes null where a row does not have what another one has."""
    if path.suffix != ".parquet":
        yield from read_rows(path, max_mb=MAX_MB)
        return
    for line, row in readers.read_rows(path):
        yield line, {key: value for key, value in row.items() if value is not None}


def _named(label: Label, path: Path, cfg: PairSourceConfig) -> Label:
    return replace(label, source=path.name, weight=label.weight * cfg.weight, domain=label.domain or cfg.domain)


def _pair(prompt: Messages, better: str, worse: str, *, tools: Tools = (), **known: Any) -> Pair:
    conversation = Conversation(prompt, tools)
    return Pair(
        prompt_id_of(conversation), conversation, Answered(better), Answered(worse),
        rater=known.pop("rater", ""), rater_kind="human", source="", **known,
    )  # fmt: skip


Read = Iterator[tuple[Label, bool]]


def _read_hh(row: Row) -> Read:
    (said, chosen), (also_said, rejected) = (hh_turns(row, key) for key in ("chosen", "rejected"))
    yield _pair(said, chosen, rejected), said != also_said


def _read_webgpt(row: Row) -> Read:
    """A score beyond a third is a clear preference, beyond two thirds a strong one."""
    said, (first, second), score = webgpt_sides(row)
    if score is None:
        return
    better, worse = (first, second) if score >= 0 else (second, first)
    strength = 1 + (3 * abs(score) > 1) + (3 * abs(score) > 2)
    yield _pair(said, better, worse, tie=score == 0, strength=strength), False


def _read_helpsteer3(row: Row) -> Read:
    prompt = _messages(row["context"], "context") if "context" in row else _asked(row)
    first, second = (_either(row, f"response{n}", f"response_{n}") for n in (1, 2))
    key = "overall_preference" if "overall_preference" in row else "preference_strength"
    score = _number(row, key)
    if abs(score) > _STRENGTHS:
        raise BadRow(f"{key!r} must be between -3 and 3")
    better, worse = (first, second) if score <= 0 else (second, first)
    domain = row["domain"] if isinstance(row.get("domain"), str) else ""
    yield _pair(prompt, better, worse, tie=score == 0, strength=max(1, round(abs(score))), domain=domain), False


def _read_pairs(row: Row) -> Read:
    """A difference of ranks, where the row has them, is a strength."""
    own = _asked(row) if "prompt" in row else ()
    (said, chosen), (also_said, rejected) = (_sides(row.get(key), key) for key in ("chosen", "rejected"))
    if not own and not said:
        raise BadRow("no 'prompt'")
    strength = 1
    if {"rank_chosen", "rank_rejected"} <= row.keys():
        strength = max(1, min(_STRENGTHS, round(_number(row, "rank_rejected") - _number(row, "rank_chosen"))))
    users = tuple(m for m in said if m.role == "user")
    differ = said != also_said or bool(own and said and own not in (said, users[:1], users[-1:]))
    yield _pair(said or own, chosen, rejected, strength=strength, tools=_tools(row), **_named_in(row)), differ


def _read_unpaired(row: Row) -> Read:
    prompt, (said, answer), good = _asked(row), _sides(row.get("completion"), "completion"), row.get("label")
    if said:
        raise BadRow("'completion' must be one assistant turn")
    if not isinstance(good, bool):
        raise BadRow("'label' must be true or false")
    conversation = Conversation(prompt, _tools(row))
    known: dict[str, Any] = {"rater": "", **_named_in(row)}
    name = prompt_id_of(conversation)
    yield Verdict(name, conversation, Answered(answer), good, rater_kind="human", source="", **known), False


class _Scores:
    """HelpSteer's rows hold one answer each; those to one prompt are compared with each other."""

    def __init__(self, attribute: str) -> None:
        self._attribute = attribute
        self._seen: dict[str, list[tuple[str, float]]] = {}

    def __call__(self, row: Row) -> Read:
        prompt, answer = text(row, "prompt"), text(row, "response", may_be_empty=True)
        score = _number(row, self._attribute)
        earlier = self._seen.setdefault(prompt, [])
        for other, its_score in earlier:
            better, worse = (other, answer) if its_score >= score else (answer, other)
            strength = max(1, min(_STRENGTHS, round(abs(its_score - score))))
            said = (Message("user", prompt),)
            yield _pair(said, better, worse, tie=its_score == score, strength=strength), False
        earlier.append((answer, score))


_READERS: Final[Mapping[str, Callable[[Row], Read]]] = {
    "hh": _read_hh,
    "webgpt": _read_webgpt,
    "helpsteer3": _read_helpsteer3,
    "pairs": _read_pairs,
    "unpaired": _read_unpaired,
}


def _asked(row: Row) -> Messages:
    if isinstance(row.get("prompt"), list):
        return _messages(row["prompt"], "prompt")
    return (Message("user", text(row, "prompt")),)


def _named_in(row: Row) -> dict[str, str]:
    return {key: text(row, key) for key in ("rater", "domain") if row.get(key) is not None}


def _tools(row: Row) -> Tools:
    return tuple(items(row, "tools", dict)) if row.get("tools") is not None else ()


def _sides(value: Any, key: str) -> tuple[Messages, str]:
    """(repeated prompt, answer) of text or messages; only the last message is the answer."""
    if isinstance(value, str):
        return (), value
    messages = _messages(value, key)
    if messages[-1].role != "assistant" or messages[-1].tool_calls:
        raise BadRow(f"{key!r} must end with an assistant turn of text")
    return messages[:-1], messages[-1].content


def _messages(value: Any, key: str) -> Messages:
    found = items({key: value}, key, dict)
    if not found:
        raise BadRow(f"{key!r} has no messages")
    try:
        return tuple(readers.read_message(m, f"{key}[{i}]", may_be_empty=True) for i, m in enumerate(found))
    except ValueError as e:
        raise BadRow(str(e)) from None


def _either(row: Row, one: str, other: str) -> str:
    return text(row, one if one in row else other, may_be_empty=True)


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"{key!r} must be a number")
    return float(value)
