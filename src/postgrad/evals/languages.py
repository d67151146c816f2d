"""Trained in English, asked in other languages: is the answer in the right language, and does it do what was asked?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from postgrad.errors import ConfigError, DataError
from postgrad.evals.stance import stance
from postgrad.feedback.intervals import share_of

LANGUAGES: Final = ("en", "es", "fr", "de", "zh")
Check = Literal["contains", "sentences", "limit"]
MIN_CONFIDENCE: Final = 0.5
"""Below it the detector has not decided among all languages: short sentences and single names are such answers."""
MIN_CONFIDENCE_ASKED: Final = 0.8
"""Likewise among the languages of the questions, which decides short sentences and leaves names open."""
_END: Final = re.compile("[.!?\u3002\uff01\uff1f\u2026][\"'\u201d\u2019\u00bb\u300d)]*$")
_SENTENCE: Final = re.compile("[.!?\u2026]+[\"'\u201d\u2019\u00bb)]*(?=\\s|$)|[\u3002\uff01\uff1f]+[\u201d\u300d]*")
_ADMITS: Final = {
    "es": (
        r"\bno (?:lo |la |te |se )?(?:puedo|sé|tengo|dispongo|veo|conozco|soy capaz|es posible|estoy conectad)",
        r"\bme es imposible|\bsoy (?:un|una|solo) (?:modelo|asistente|programa|ia|inteligencia)|\bincapaz de\b",
    ),
    "fr": (
        r"\bje (?:ne |n['’]\s?)(?:\w+ )?(?:peux|sais|ai|suis|vois|connais|dispose|possède)[^.!?]*"
        r"\b(?:pas|aucun|aucune|incapable|rien)\b",
        r"\bil m['’]est impossible|\bincapable de\b|\ben tant qu['’](?:ia|assistant|modèle|intelligence)",
    ),
    "de": (
        r"\bich (?:kann|weiß|weiss|kenne|sehe|habe|bin)\b[^.!?]*\b(?:nicht|kein|keine|keinen|keinerlei)\b",
        r"\b(?:kann|weiß|weiss|kenne|sehe|habe) ich\b[^.!?]*\b(?:nicht|kein|keine|keinen|keinerlei)\b",
        r"\bnicht in der lage\b|\bmir nicht möglich\b|\b(?:als|bin) (?:nur )?(?:eine? )?(?:ki|sprachmodell|künstliche)",
    ),
    "zh": (
        "我(?:现在|目前|并|也|还|真的|暂时)*"
        "(?:无法|不能|没法|不知道|不清楚|没有|看不到|看不见|不会|做不到|不了解|只是)",
        "(?:抱歉|对不起)[^。]*(?:无法|不能|没法|不知道|没有)|作为[^。]{0,8}(?:人工智能|AI|语言模型)",
    ),
}


@dataclass(frozen=True, slots=True)
class Task:
    """One question in every language, and what a program can say of its answers."""

    id: str
    check: Check
    prompts: Mapping[str, str]
    answers: Mapping[str, Sequence[str]]
    """Of "contains": any of them will do."""
    number: int
    """Of "sentences"."""


def read_tasks(path: Path) -> list[Task]:
    """Tasks from JSON lines.

    Raises:
        DataError: names every row that is none.
    """
    tasks, bad = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            task = Task(row["id"], row["check"], row["prompts"], row.get("answers", {}), row.get("number", 0))
            told = {"contains": set(task.answers) == set(LANGUAGES), "sentences": task.number > 0, "limit": True}
            fine = isinstance(task.id, str) and set(task.prompts) == set(LANGUAGES) and told[task.check]
        except (ValueError, KeyError, TypeError, AttributeError):
            fine = False
        if fine:
            tasks.append(task)
        else:
            bad.append(number)
    if bad or not tasks:
        where = f"line {', '.join(map(str, bad[:10]))}" if bad else "no row"
        raise DataError(
            f"{path}: {where}: a task needs id, check (contains, sentences or limit) and prompts in "
            f"{', '.join(LANGUAGES)}, with answers in each or a number of sentences"
        )
    return tasks


def detector() -> Callable[[str], str | None]:
    """The language of a text as its ISO 639-1 code; None where it is too short to say (py3langid, offline).

    One of 97, or, where none of them is sure, one of those that the questions are in.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ConfigError("the language detector is not installed; run: pip install 'postgrad[languages]'") from None
    every, asked = (LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True) for _ in range(2))
    asked.set_languages(list(LANGUAGES))

    def detect(text: str) -> str | None:
        for identifier, least in ((every, MIN_CONFIDENCE), (asked, MIN_CONFIDENCE_ASKED)):
            language, confidence = identifier.classify(text)
            if confidence >= least:
                return cast(str, language)
        return None

    return detect


def num_sentences(text: str) -> int:
    """Sentences by their marks; what follows the last mark counts as one."""
    return sum(bool(re.search(r"\w", part)) for part in _SENTENCE.split(text))


def admits(answer: str, language: str) -> bool:
    """Whether an answer in that language admits a limit before it claims anything; claims are read in English only."""
    if language == "en":
        return stance(answer) == "admits"
    return any(re.search(pattern, answer, re.IGNORECASE) for pattern in _ADMITS[language])


def obeys(task: Task, language: str, answer: str) -> bool:
    """Whether an answer does what the task asks, whatever language it is in.

    An answer in English to a foreign question may be the right one, so the words of both languages count.
    """
    if task.check == "sentences":
        return num_sentences(answer) == task.number
    if task.check == "limit":
        return admits(answer, language) or admits(answer, "en")
    wanted = (*task.answers[language], *task.answers["en"])
    return any(re.search(_as_pattern(word), answer, re.IGNORECASE) for word in wanted)


def _as_pattern(word: str) -> str:
    return word if "\u4e00" <= word[0] <= "\u9fff" else rf"(?<!\w){re.escape(word)}(?!\w)"


def judge(
    task: Task, language: str, answer: str, finish_reason: str, detect: Callable[[str], str | None]
) -> dict[str, Any]:
    """What is found of one answer; `right` is the right language and the right behaviour at once."""
    found = detect(answer)
    obeyed = obeys(task, language, answer)
    return {
        "detected": found,
        "right_language": found == language,
        "obeys": obeyed,
        "ends": finish_reason == "stop" and _END.search(answer.rstrip()) is not None,
        "right": obeyed and found == language,
    }


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By language: shares of its answers with 95% Wilson intervals.

    Args:
        rows: of one model; `language`, `check` and what `judge` found.
    """
    return {language: _of_language([r for r in rows if r["language"] == language]) for language in LANGUAGES}


def _of_language(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    checks: tuple[Check, ...] = ("contains", "sentences", "limit")
    return {
        **{key: _share(rows, key) for key in ("right_language", "obeys", "ends", "right")},
        "undecided": sum(row["detected"] is None for row in rows),
        "checks": {check: _share([row for row in rows if row["check"] == check], "obeys") for check in checks},
    }


def _share(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    found = share_of(sum(row[key] for row in rows), len(rows))
    return asdict(found) if found else None
