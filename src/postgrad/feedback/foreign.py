"""Rows of other tools' files to questions: pure functions, one a format, which raise BadRow with what is wrong.

HH: anthropics/hh-rlhf. WebGPT: openai/webgpt_comparisons (Nakano et al., 2021, arXiv 2112.09332). Label Studio: the
export of its template "Human Preference collection for RLHF". Argilla: `dataset.records.to_json`, or 1.x records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from postgrad.errors import DataError
from postgrad.feedback.codec import conversation_to_json
from postgrad.feedback.intake import BadRow, identifier, items, mapping, text
from postgrad.feedback.records import content_id
from postgrad.feedback.values import Kind, check_value
from postgrad.types import Conversation, Message, Role


@dataclass(frozen=True, slots=True)
class Judgement:
    kind: Kind
    value: Mapping[str, Any]
    rater: str = ""
    """As the file names the person; empty where it does not."""
    answer: int | None = None
    """Which answer a rating is about."""
    milliseconds: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    prompt: Conversation
    answers: tuple[str, ...]
    judgements: tuple[Judgement, ...] = ()

    @property
    def prompt_id(self) -> str:
        """By content, so that a question that stands in several rows is one."""
        return content_id("prompt", conversation_to_json(self.prompt))


Row = dict[str, Any]
Reader = Callable[[Row], Question]


def read_questions(row: Row) -> Question:
    """The plainest way to write some by hand; `best` is the index of the better answer, where it is known."""
    answers = tuple(items(row, "answers", str))
    if len(answers) < 2 or not all(answer.strip() for answer in answers):
        raise BadRow("'answers' must hold two or more texts, none of them empty")
    said = (Message("user", text(row, "prompt")),)
    if "best" not in row:
        return _question(said, answers)
    best = row["best"]
    if not isinstance(best, int) or isinstance(best, bool) or not 0 <= best < len(answers):
        raise BadRow(f"'best' must be the index of an answer, 0 to {len(answers) - 1}")
    return _question(said, answers, (_ordering([[best], [i for i in range(len(answers)) if i != best]]),))


def read_hh(row: Row) -> Question:
    """Which answer comes first is decided by their texts: the chosen one must not always be answer 0."""
    (said, chosen), (also_said, rejected) = (hh_turns(row, key) for key in ("chosen", "rejected"))
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer.strip():
            raise BadRow(f"the last answer of {key!r} is empty")
    if said != also_said:
        raise BadRow("the conversations before the last answers of 'chosen' and 'rejected' differ")
    answers = tuple(sorted((chosen, rejected), key=lambda answer: content_id("side", answer)))
    better = answers.index(chosen)
    return _question(said, answers, (_ordering([[better], [1 - better]]),))


def read_webgpt(row: Row) -> Question:
    """A score of 0 is a tie, else its sign decides; the quotes stand below the answer that cites them."""
    for side in (0, 1):
        text(row, f"answer_{side}")
    said, answers, first = webgpt_sides(row)
    if first is None:
        return _question(said, answers)
    tiers = [[0, 1]] if first == 0 else [[0], [1]] if first > 0 else [[1], [0]]
    return _question(said, answers, (_ordering(tiers),))


def webgpt_sides(row: Row) -> tuple[tuple[Message, ...], tuple[str, str], float | None]:
    """(question, answers with their quotes, score of the first from -1 to 1 or None); an empty answer has no quotes."""
    said = (Message("user", text(mapping(row, "question"), "full_text")),)
    answers = _quoted(row, 0), _quoted(row, 1)
    scores = [row.get(f"score_{side}") for side in (0, 1)]
    if scores == [None, None]:
        return said, answers, None
    first, second = scores
    if not all(isinstance(score, int | float) and not isinstance(score, bool) for score in scores):
        raise BadRow("'score_0' and 'score_1' must be numbers")
    assert first is not None
    assert second is not None
    if abs(first + second) > 1e-6 or abs(first) > 1:
        raise BadRow("'score_0' and 'score_1' must be between -1 and 1 and add up to 0")
    return said, answers, float(first)


def hh_turns(row: Row, key: str) -> tuple[tuple[Message, ...], str]:
    """(what was said before, the last answer) of a transcript."""
    before, *parts = _HH_TURN.split(text(row, key))
    if before.strip() or len(parts) < 4:
        raise BadRow(f"{key!r} is no transcript: it begins with '\\n\\nHuman:' and ends with an answer")
    turns = [Message(_HH_ROLES[role], said) for role, said in zip(parts[::2], parts[1::2], strict=True)]
    if turns[0].role != "user" or turns[-1].role != "assistant" or turns[-2].role != "user":
        raise BadRow(f"{key!r} must begin with 'Human' and end with one answer of 'Assistant'")
    return tuple(turns[:-1]), turns[-1].content


def read_label_studio(row: Row) -> Question:
    """A task with `prompt`, `answer1` and `answer2`; the last annotation of a person counts, unless cancelled."""
    data = mapping(row, "data")
    found: dict[str, Judgement] = {}
    for annotation in items(row, "annotations", dict) if "annotations" in row else []:
        chosen = [
            mapping(result, "value").get("selected")
            for result in items(annotation, "result", dict)
            if result.get("type") == "pairwise"
        ]
        if annotation.get("was_cancelled") or not chosen:
            continue
        if len(chosen) > 1 or chosen[0] not in ("left", "right"):
            raise BadRow("an annotation must hold one pairwise result, 'left' or 'right'")
        who = annotation.get("completed_by", "")
        rater = who.get("id", who.get("email")) if isinstance(who, dict) else who
        seconds = annotation.get("lead_time")
        found[str(rater)] = _ordering(
            [[0], [1]] if chosen[0] == "left" else [[1], [0]],
            rater="" if rater == "" else identifier(rater, "completed_by"),
            milliseconds=round(1000 * seconds) if isinstance(seconds, int | float) else None,
        )
    answers = (text(data, "answer1"), text(data, "answer2"))
    return _question((Message("user", text(data, "prompt")),), answers, tuple(found.values()))


def read_argilla(row: Row) -> Question:
    """A ranking's values name the fields that were ranked; a rating is about the one field beside the prompt."""
    fields = mapping(row, "fields")
    asked = next((name for name in _ARGILLA_PROMPTS if name in fields), None)
    if asked is None:
        raise BadRow(f"'fields' has no prompt; name it {', '.join(_ARGILLA_PROMPTS)}")
    names = [name for name in fields if name != asked]
    answers = tuple(text(fields, name) for name in names)
    judgements = [_argilla_judgement(*given, names) for given in _argilla_responses(row)]
    return _question((Message("user", text(fields, asked)),), answers, tuple(judgements))


READERS: Final[Mapping[str, Reader]] = {
    "questions": read_questions,
    "hh": read_hh,
    "webgpt": read_webgpt,
    "label-studio": read_label_studio,
    "argilla": read_argilla,
}
_ARGILLA_PROMPTS: Final = ("prompt", "instruction", "question")
_HH_TURN: Final = re.compile(r"\n\n(Human|Assistant):[ \n]?")
_HH_ROLES: Final[Mapping[str, Role]] = {"Human": "user", "Assistant": "assistant"}


def _question(said: tuple[Message, ...], answers: tuple[str, ...], judgements: tuple[Judgement, ...] = ()) -> Question:
    if len(set(answers)) != len(answers):
        raise BadRow("the answers are the same")
    for judgement in judgements:
        try:
            check_value(
                judgement.kind,
                judgement.value,
                num_answers=len(answers),
                details={"axes": list(judgement.value.get("axes", ()))},
            )
        except DataError as e:
            raise BadRow(str(e)) from None
    return Question(Conversation(said), answers, judgements)


def _ordering(tiers: Sequence[Sequence[int]], *, rater: str = "", milliseconds: int | None = None) -> Judgement:
    kind: Kind = "compare" if sum(map(len, tiers)) == 2 else "rank"
    return Judgement(kind, {"tiers": [list(tier) for tier in tiers]}, rater, milliseconds=milliseconds)


def _quoted(row: Row, side: int) -> str:
    quotes = mapping(row, f"quotes_{side}")
    titles, extracts = items(quotes, "title", str), items(quotes, "extract", str)
    if len(titles) != len(extracts):
        raise BadRow(f"'quotes_{side}' has {len(titles)} titles and {len(extracts)} extracts")
    answer = text(row, f"answer_{side}", may_be_empty=True)
    if not answer.strip():
        return ""
    listed = [f"[{i}] {title}\n{extract}" for i, (title, extract) in enumerate(zip(titles, extracts, strict=True), 1)]
    return "\n\n".join([answer, *listed])


def _argilla_responses(row: Row) -> list[tuple[str, str, Any]]:
    """(question, rater, value) of each submitted response, in the shape of 2.x or of 1.x."""
    found: list[tuple[str, str, Any]] = []
    responses = row.get("responses") or {}
    if isinstance(responses, dict):
        for question, given in responses.items():
            if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
                raise BadRow(f"'responses.{question}' must be a list of objects")
            found += [(question, _rater(one), one.get("value")) for one in given]
        return found
    for response in items(row, "responses", dict):
        if response.get("status", "submitted") == "submitted":
            values = mapping(response, "values")
            found += [(question, _rater(response), mapping(values, question).get("value")) for question in values]
    return found


def _rater(response: Row) -> str:
    return identifier(response["user_id"], "user_id") if response.get("user_id") is not None else ""


def _argilla_judgement(question: str, rater: str, value: Any, names: Sequence[str]) -> Judgement:
    if isinstance(value, int) and not isinstance(value, bool):
        if len(names) != 1:
            raise BadRow(f"{question!r} rates one answer, and 'fields' has {len(names)} beside the prompt")
        return Judgement("rate", {"axes": {question: value}}, rater, answer=0)
    if not isinstance(value, list) or not value:
        raise BadRow(f"{question!r} is neither a ranking nor a rating")
    ranks: dict[int, list[int]] = {}
    for i, item in enumerate(value):
        name, rank = (item.get("value"), item.get("rank")) if isinstance(item, dict) else (item, i)
        if name not in names or not isinstance(rank, int):
            raise BadRow(f"{question!r} ranks {name!r}, which is no field of text, or ranks it by no number")
        ranks.setdefault(rank, []).append(names.index(name))
    return _ordering([ranks[rank] for rank in sorted(ranks)], rater=rater)
