from pathlib import Path

import pytest

from postgrad.errors import DataError
from postgrad.testing import byte_tokenizer
from postgrad.text import Renderer, load_tokenizer

from .chat_styles import STYLES


@pytest.mark.parametrize("name", sorted(STYLES))
def test_a_saved_tokenizer_renders_the_same_and_keeps_its_fingerprint(name: str, tmp_path: Path) -> None:
    tokenizer = STYLES[name].tokenizer(merges=True)
    tokenizer.save_pretrained(tmp_path)
    before, after = Renderer(tokenizer), Renderer(load_tokenizer(tmp_path))
    assert (after.template, after.stop_ids, after.fingerprint) == (before.template, before.stop_ids, before.fingerprint)


def test_bytes_are_tokens_of_the_byte_tokenizer() -> None:
    tokenizer = byte_tokenizer()
    every_byte = [tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(i)) for i in range(256)]
    assert every_byte == list(range(256))
    text = "a\x00 é🙂\n"
    assert tokenizer.encode(text + "<eos>", add_special_tokens=False) == [*text.encode(), 257]
    assert tokenizer.decode(list(text.encode())) == text


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere' does not exist; `postgrad models pull"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_model_directory_without_tokenizer_names_the_missing_file(name: str, tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"has no {name}; copy it from the model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"version": "1.0"', "\x00"])
def test_a_damaged_tokenizer_is_one_sentence(text: str, tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match="cannot be read") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)
