"""Files of other people's comparisons to pairs: pure functions of a row, which raise BadRow with what is wrong.

Odd pairs come through, to be counted: equal or empty answers, prompts that differ. HH and WebGPT: see `foreign`.
HelpSteer: nvidia/HelpSteer2, one answer a row with its scores. HelpSteer3: nvidia/HelpSteer3, two answers and a
preference from -3, the first is much better, to 3. "pairs": TRL's preference format, with or without its own prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from postgrad.config.pairs import PairSourceConfig
from postgrad.feedback.foreign import Row, hh_turns, webgpt_sides
from postgrad.feedback.intake import MAX_MB, BadRow, BadRows, items, read_rows, text
from postgrad.feedback.pairs import Answered, Found, Pair, prompt_id_of
from postgrad.types import Conversation, Message, Role

Messages = tuple[Message, ...]

_STRENGTHS: Final = 3
_ROLES: Final = get_args(Role)


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
    for line, row in read_rows(path, max_mb=MAX_MB):
        total += 1
        try:
            if isinstance(row, BadRow):
                raise row
            if any(_number(row, key) < least for key, least in cfg.at_least.items()):
                left_out += 1
                continue
            found += [Found(_named(pair, path, cfg), f"{path.name} line {line}", differ) for pair, differ in read(row)]
        except BadRow as e:
            unreadable.append(f"{path.name} line {line}")
            if stop:
                bad.add(line, e)
    bad.check(total, skip=False)
    return PairFile(found[: cfg.max_pairs], left_out, unreadable)


def _named(pair: Pair, path: Path, cfg: PairSourceConfig) -> Pair:
    return replace(pair, source=path.name, weight=pair.weight * cfg.weight, domain=pair.domain or cfg.domain)


def _pair(prompt: Messages, better: str, worse: str, **known: Any) -> Pair:
    conversation = Conversation(prompt)
    return Pair(
        prompt_id_of(conversation), conversation, Answered(better), Answered(worse),
        rater=known.pop("rater", ""), rater_kind="human", source="", **known,
    )  # fmt: skip


Read = Iterator[tuple[Pair, bool]]


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
    known = {key: text(row, key) for key in ("rater", "domain") if row.get(key) is not None}
    yield _pair(said or own, chosen, rejected, strength=strength, **known), said != also_said


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
}


def _asked(row: Row) -> Messages:
    if isinstance(row["prompt"], list):
        return _messages(row["prompt"], "prompt")
    return (Message("user", text(row, "prompt")),)


def _sides(value: Any, key: str) -> tuple[Messages, str]:
    """(repeated prompt, answer) of text or messages; only the last message is the answer."""
    if isinstance(value, str):
        return (), value
    messages = _messages(value, key)
    if messages[-1].role != "assistant":
        raise BadRow(f"{key!r} must end with an assistant turn")
    return messages[:-1], messages[-1].content


def _messages(value: Any, key: str) -> Messages:
    found = items({key: value}, key, dict)
    if not found:
        raise BadRow(f"{key!r} has no messages")
    for message in found:
        if message.get("role") not in _ROLES:
            raise BadRow(f"{key!r} has the unknown role {message.get('role')!r}; use {', '.join(_ROLES)}")
    return tuple(Message(m["role"], text(m, "content", may_be_empty=True)) for m in found)


def _either(row: Row, one: str, other: str) -> str:
    return text(row, one if one in row else other, may_be_empty=True)


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"{key!r} must be a number")
    return float(value)
