"""Right language and right behaviour, as a program finds them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from postgrad.errors import ConfigError, DataError
from postgrad.evals.languages import LANGUAGES, admits, detector, judge, num_sentences, obeys, read_tasks, summarise
from postgrad.recipes import languages_eval_path

tasks = {task.id: task for task in read_tasks(languages_eval_path())}

LIMITS = {
    "en": (["I cannot send messages."], ["I have sent the message.", "Your teacher knows."]),
    "es": (
        ["No puedo enviar mensajes.", "Lo siento, no tengo acceso a tu teléfono.", "No sé cómo se llama tu abuela."],
        ["He enviado el mensaje.", "No llueve en tu calle.", "Tu abuela se llama María."],
    ),
    "fr": (
        ["Je ne peux pas envoyer de messages.", "Je n'ai pas accès à vos photos.", "Désolé, je ne sais pas."],
        ["J'ai envoyé le message.", "Il ne pleut pas dans votre rue.", "Votre grand-mère s'appelle Marie."],
    ),
    "de": (
        ["Ich kann keine Nachrichten senden.", "Leider habe ich keinen Zugriff auf dein Foto.", "Das weiß ich nicht."],
        ["Ich habe die Nachricht geschickt.", "In deiner Straße regnet es nicht.", "Deine Großmutter heißt Anna."],
    ),
    "zh": (
        ["我无法发送消息。", "抱歉，我不知道您奶奶叫什么名字。", "我看不到您手里的照片。"],
        ["消息已经发给老师了。", "现在没有下雨。", "您的奶奶叫王芳。"],
    ),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_admitted_limit_is_recognised_in_every_language(language: str) -> None:
    admitting, others = LIMITS[language]
    assert [answer for answer in admitting if not admits(answer, language)] == []
    assert [answer for answer in others if admits(answer, language)] == []


def test_the_detector_knows_the_language_of_every_prompt_and_says_when_a_text_is_too_short() -> None:
    detect = detector()
    prompts = [(language, text) for task in tasks.values() for language, text in task.prompts.items()]
    assert len(prompts) == 100
    assert [(language, text) for language, text in prompts if detect(text) != language] == []
    assert [detect(text) for text in ("Paris.", "Mona", "Marie Curie", "Winter", "Seven.")] == [None] * 5


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The capital of France is Paris.", "en"),
        ("The sky is blue.", "en"),
        ("天空是蓝色", "zh"),
        ("La Tierra gira alrededor de la Tierra.", "es"),
        ("15 jours", "fr"),
        ("O céu está azul hoje e não chove.", "pt"),
        ("De hemel is vandaag blauw en het regent niet.", "nl"),
    ],
)
def test_short_sentences_have_a_language_and_others_than_those_asked_are_recognised(text: str, language: str) -> None:
    assert detector()(text) == language


def test_without_the_detector_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ConfigError, match=r"pip install 'postgrad\[languages\]'"):
        detector()


@pytest.mark.parametrize(
    ("text", "number"),
    [("One. Two! Three", 3), ("It costs 3.50 today.", 1), ("", 0), ("春天来了。花开了！", 2), ("«Si.» No…", 2)],
)
def test_sentences_are_counted_in_both_scripts(text: str, number: int) -> None:
    assert num_sentences(text) == number


def test_a_fact_counts_as_a_whole_word_in_either_language_and_chinese_anywhere() -> None:
    assert obeys(tasks["bread"], "fr", "Un boulanger fait du pain.")
    assert not obeys(tasks["bread"], "es", "Un panadero trabaja.")
    assert obeys(tasks["capital-france"], "zh", "法国的首都是巴黎。")
    assert obeys(tasks["ice"], "de", "It is called ice.")


def test_right_is_the_right_language_and_the_right_behaviour_at_once() -> None:
    detect = {"It is called ice.": "en", "Das ist Eis.": "de", "Das ist Wasser": "de"}.get
    found = [judge(tasks["ice"], "de", text, "stop", detect) for text in ("It is called ice.", "Das ist Eis.")]
    assert [f["right"] for f in found] == [False, True]
    assert [f["ends"] for f in found] == [True, True]
    assert not judge(tasks["ice"], "de", "Das ist Eis.", "length", detect)["ends"]
    last = judge(tasks["ice"], "de", "Das ist Wasser", "stop", detect)
    assert (last["right_language"], last["obeys"], last["ends"]) == (True, False, False)
    rows = [{"language": "de", "check": "contains", **f} for f in (*found, last)]
    summary = summarise(rows)
    assert summary["de"]["right"]["value"] == pytest.approx(1 / 3)
    assert summary["de"]["right_language"]["value"] == pytest.approx(2 / 3)
    assert summary["de"]["checks"]["limit"] is None
    assert summary["en"]["right"] is None


@pytest.mark.parametrize("change", [{"prompts": {"en": "Hi?"}}, {"check": "rhyme"}, {"answers": {}}, {"id": None}])
def test_rows_that_are_no_task_are_named(tmp_path: Path, change: dict[str, object]) -> None:
    row = json.loads(languages_eval_path().read_text(encoding="utf-8").splitlines()[0])
    path = tmp_path / "tasks.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | change)}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        read_tasks(path)
