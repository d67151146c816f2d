from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgrad.text import Renderer, load_tokenizer
from postgrad.text.bpe import END_OF_TEXT, encode_text, train_tokenizer
from postgrad.types import Conversation, Message

TEXTS = ["the cat sat on the mat\n\nthe cat sat", "The naïve café: 3.14 – “quoted” 🙂\n" * 3]
TOKENIZER = train_tokenizer(TEXTS, 300)


@given(st.text(max_size=60) | st.lists(st.sampled_from([END_OF_TEXT, "the", " cat", "\n", "  ", "'s"])).map("".join))
def test_any_text_comes_back_unchanged_and_never_as_a_special_token(text: str) -> None:
    ids = encode_text(TOKENIZER, text)
    assert TOKENIZER.eos_token_id not in ids
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_ids_are_eos_then_bytes_then_merges_by_frequency() -> None:
    tokenizer = train_tokenizer(["ab ab ab abc xy"], 259)
    names = tokenizer.convert_ids_to_tokens([0, 257, 258])
    # "ab" four times and " a" three times, whose "a" is then gone; so the second merge is " " with "ab".
    assert names == [END_OF_TEXT, "ab", "Ġab"]
    assert len(tokenizer) == 259
    assert encode_text(tokenizer, "ab ab") == [257, 258]
    assert sorted(encode_text(tokenizer, bytes(range(97, 123)).decode()))[0] > 0


def test_pairs_that_do_not_repeat_are_not_merged() -> None:
    assert len(train_tokenizer(["abc"], 1000)) == 257


def test_the_same_texts_give_the_same_tokenizer() -> None:
    assert train_tokenizer(TEXTS, 300).backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_spelling_a_special_token_leaves_the_tokenizer_as_it_was() -> None:
    assert len(encode_text(TOKENIZER, END_OF_TEXT)) > 1
    assert TOKENIZER.encode(END_OF_TEXT, add_special_tokens=False) == [TOKENIZER.eos_token_id]


def test_it_can_be_saved_and_chatted_with(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    renderer = Renderer(load_tokenizer(tmp_path))
    conversation = Conversation((Message("user", "the cat?"), Message("assistant", "the mat")))
    ids, mask = renderer.render(conversation)
    assert renderer.stop_ids == (0,)
    assert [token for token, trained in zip(ids, mask, strict=True) if trained] == [
        *encode_text(TOKENIZER, "the mat"),
        0,
    ]


def test_no_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(AssertionError, match="every byte and EOS"):
        train_tokenizer(TEXTS, 256)
