"""The declared gold utility: what the simulated raters want, written over things that a program can check.

It stands in for people, so that a round runs unattended and every statistic downstream can be held against
a known truth. `UNREWARDED` measures are computed here too, and enter neither the utility nor any reward.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from postgrad.errors import DataError

Value = TypeVar("Value", int, str)

REWARDED_KINDS: Final = ("max_words", "one_sentence", "lowercase", "starts_with", "ends_with")
UNSEEN_KINDS: Final = ("no_commas", "min_sentences", "quoted")
"""Constraints that only held-out prompts carry: they measure whether following instructions generalises."""

UNREWARDED: Final = ("reference_f1", "question_echo", "unseen_constraints_met")

_ARTICLES: Final = frozenset(("a", "an", "the"))
_STOPWORDS: Final = _ARTICLES | frozenset(
    re.findall(
        r"\w+",
        "about after all also am and any are as at be because been before being between both but by can could did do "
        "does doing done for from had has have he her here him his how i if in into is it its just like many may me "
        "might more most much my no not of off on one only or other our out over she should so some such than that "
        "their them then there these they this those through to too under up us use used using very was we were what "
        "when where which while who whom whose why will with would you your",
    )
)
_SHORT_REFERENCE_WORDS: Final = 4
_NUMBER: Final = r"\d+(?:[.,]\d+)*(?![^\W_])"
_ACRONYM: Final = r"(?:[^\W\d_]\.){2,}"
_TOKEN: Final = re.compile(rf"{_NUMBER}|{_ACRONYM}|[^\W_]+(?:['\u2019][^\W_]+)*")
_SENTENCE_END: Final = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*(?=\s|$)|\n+")
_ABBREVIATION: Final = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e)\.$|^\s*\d+\.$|\b[A-HJ-Z]\.$")
_FINAL_PUNCTUATION: Final = (".", "!", "?", "\u2026")
_CLOSERS: Final = "\"'\u201d\u2019)]*_`"
_QUOTES: Final = (('"', '"'), ("\u201c", "\u201d"))


@dataclass(frozen=True, slots=True)
class Utility:
    """Weights of the gold utility, in logits of a rater whose noise temperature is 1."""

    constraint: float = 1.5
    """Times the share of rewarded constraints met; nothing where the prompt has none."""
    reference: float = 1.0
    """Times `reference_contained`; nothing where there is no reference."""
    ends_properly: float = 1.0
    repetition: float = -1.0
    """Times the share of repeated trigrams."""
    concision: float = -0.02
    """Per word beyond `concise_words`."""
    concise_words: int = 8
    concision_cap: int = 40
    """Words beyond `concise_words` that are charged at most."""
    empty: float = -2.0


GOLD: Final = Utility()


def words(text: str) -> list[str]:
    """Words as a reader counts them: whitespace-separated, with at least one letter or digit."""
    return [w for w in text.split() if any(c.isalnum() for c in w)]


def normalise(text: str) -> list[str]:
    """Comparable words: case, punctuation, thousands separators and English articles removed (after SQuAD)."""
    tokens = (t.translate({ord(c): None for c in "'\u2019,"}) for t in _TOKEN.findall(text.casefold()))
    cleaned = (t if t[:1].isdigit() else t.replace(".", "") for t in tokens)
    return [t for t in cleaned if t not in _ARTICLES]


def sentences(text: str) -> list[str]:
    """Split at final punctuation and line breaks; titles, initials and list numbers end no sentence."""
    found, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        piece = text[start : end.end()]
        if _ABBREVIATION.search(piece.rstrip()) and text[end.end() :].strip():
            continue
        found.append(piece.strip())
        start = end.end()
    found.append(text[start:].strip())
    return [s for s in found if words(s)]


def satisfies(constraint: Mapping[str, Any], text: str) -> bool:
    """Whether an answer obeys one instruction; an answer without a word obeys none.

    Raises:
        DataError: unknown kind, or a kind whose `value` is missing or of the wrong type.
    """
    kind = constraint.get("kind")
    answer = text.strip()
    match kind:
        case "max_words":
            limit = _value(constraint, int)
            return 0 < len(words(answer)) <= limit
        case "one_sentence":
            return len(sentences(answer)) == 1
        case "lowercase":
            return bool(words(answer)) and not any(c.isupper() for c in answer)
        case "starts_with":
            prefix = _value(constraint, str)
            return answer.startswith(prefix) and bool(words(answer[len(prefix) :]))
        case "ends_with":
            suffix = _value(constraint, str)
            return answer.endswith(suffix) and bool(words(answer[: len(answer) - len(suffix)]))
        case "no_commas":
            return bool(words(answer)) and "," not in answer
        case "min_sentences":
            least = _value(constraint, int)
            return sum(_is_finished(s) for s in sentences(answer)) >= least
        case "quoted":
            return bool(words(answer)) and any(answer.startswith(q) and answer.endswith(r) for q, r in _QUOTES)
    known = ", ".join(REWARDED_KINDS + UNSEEN_KINDS)
    raise DataError(f"unknown constraint kind {kind!r}; use one of {known}")


def measures(
    text: str, *, finish_reason: str, reference: str | None, constraints: Sequence[Mapping[str, Any]], prompt: str
) -> dict[str, float | None]:
    """Everything checkable about one answer; None where the prompt gives nothing to check.

    `constraints_met` and `unseen_constraints_met` are the shares met of the rewarded and of the unseen kinds.
    `reference_contained` is 0 or 1 for a reference of at most four words (its words in order), else the share of
    its content words that the answer has. `question_echo` is the share of the prompt's content words copied.
    """
    answer = normalise(text)
    num_words = len(words(text))
    wanted = normalise(reference or "")
    return {
        "constraints_met": _share_met(constraints, REWARDED_KINDS, text),
        "reference_contained": _contained(wanted, answer) if wanted else None,
        "words": float(num_words),
        "repeated_trigrams": repeated_trigrams(text),
        "ends_properly": float(
            finish_reason == "stop" and num_words > 0 and (_is_finished(text) or num_words <= _SHORT_REFERENCE_WORDS)
        ),
        "empty": float(num_words == 0),
        "reference_f1": _f1(wanted, answer) if wanted else None,
        "question_echo": _recall(_content(normalise(prompt)), answer),
        "unseen_constraints_met": _share_met(constraints, UNSEEN_KINDS, text),
    }


def repeated_trigrams(text: str) -> float:
    """Share of word trigrams that have occurred before in the text, 0 for fewer than two trigrams."""
    tokens = _TOKEN.findall(text.casefold())
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def utility(measured: Mapping[str, float | None], weights: Utility = GOLD) -> float:
    """The gold utility of one answer, in logits; only differences within one prompt mean anything."""
    constraint, reference = measured["constraints_met"], measured["reference_contained"]
    num_words = measured["words"] or 0.0
    beyond = min(max(num_words - weights.concise_words, 0.0), weights.concision_cap)
    return (
        weights.constraint * (constraint or 0.0)
        + weights.reference * (reference or 0.0)
        + weights.ends_properly * (measured["ends_properly"] or 0.0)
        + weights.repetition * (measured["repeated_trigrams"] or 0.0)
        + weights.concision * beyond
        + weights.empty * (measured["empty"] or 0.0)
    )


def _value(constraint: Mapping[str, Any], kind: type[Value]) -> Value:
    value = constraint.get("value")
    if not isinstance(value, kind):
        raise DataError(f"constraint {constraint.get('kind')!r} needs a {kind.__name__} under 'value', not {value!r}")
    return value


def _share_met(constraints: Sequence[Mapping[str, Any]], kinds: Sequence[str], text: str) -> float | None:
    met = [(c.get("kind"), satisfies(c, text)) for c in constraints]
    counted = [ok for kind, ok in met if kind in kinds]
    return sum(counted) / len(counted) if counted else None


def _is_finished(text: str) -> bool:
    return text.rstrip().rstrip(_CLOSERS).endswith(_FINAL_PUNCTUATION)


def _content(tokens: Sequence[str]) -> set[str]:
    return {t for t in tokens if t not in _STOPWORDS}


def _contained(wanted: Sequence[str], answer: Sequence[str]) -> float:
    if len(wanted) <= _SHORT_REFERENCE_WORDS:
        windows = (list(answer[i : i + len(wanted)]) for i in range(len(answer) - len(wanted) + 1))
        return float(any(window == list(wanted) for window in windows))
    return _recall(_content(wanted) or set(wanted), answer)


def _recall(wanted: set[str], answer: Sequence[str]) -> float:
    return len(wanted & set(answer)) / len(wanted) if wanted else 0.0


def _f1(wanted: Sequence[str], answer: Sequence[str]) -> float:
    """Token F1: harmonic mean of precision and recall over the multisets of words (Rajpurkar et al., 2016)."""
    common = (Counter(wanted) & Counter(answer)).total()
    return 2 * common / (len(wanted) + len(answer)) if common else 0.0
