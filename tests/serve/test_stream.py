"""Text that is shown piece by piece is the text of the answer, whatever the bytes and the stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from postgrad.serve.stream import TextStream

END = 256


def decode(ids: Sequence[int]) -> str:
    return bytes(i for i in ids if i != END).decode("utf-8", "replace")


def pieces_of(ids: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    """Pushed one by one until the text holds a stop string, as an engine does, then finished with the cut text."""
    stream = TextStream(decode, stop=stop, hidden=[END])
    pieces = []
    seen: list[int] = []
    for token in ids:
        seen.append(token)
        pieces.append(stream.push(token))
        if any(string in decode(seen) for string in stop):
            break
    text = decode(seen)
    cuts = [text.index(string) for string in stop if string in text]
    return [*pieces, stream.finish(text[: min(cuts, default=len(text))])]


def test_a_character_appears_with_its_last_byte() -> None:
    assert pieces_of("a→b".encode()) == ["a", "", "", "→", "b", ""]


def test_the_end_token_is_not_shown() -> None:
    assert pieces_of([*b"ok", END]) == ["o", "k", "", ""]


def test_bytes_that_never_become_a_character_are_shown_as_such() -> None:
    assert pieces_of(b"a\xe2b\xff") == ["a", "", "\ufffdb", "", "\ufffd"]


def test_the_start_of_a_stop_string_is_held_back_until_it_is_none() -> None:
    assert pieces_of(b"x##y###z", stop=["###"]) == ["x", "", "", "##y", "", "", "", ""]
    assert pieces_of(b"a\n\nb", stop=["\n\n"]) == ["a", "", "", ""]


def test_what_was_held_back_is_given_out_at_the_end() -> None:
    assert pieces_of(b"a#", stop=["###"]) == ["a", "", "#"]


@given(st.text("ab#é→\n", max_size=30), st.lists(st.text("ab#→", min_size=1, max_size=3), max_size=3))
def test_the_pieces_add_up_to_the_text_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    whole = "".join(pieces_of(text.encode(), stop))
    cut = min((text.index(string) for string in stop if string in text), default=len(text))
    assert whole == text[:cut] or any(string in text for string in stop)
    assert not any(string in whole for string in stop)
    assert text.startswith(whole)


@given(st.binary(max_size=30))
def test_the_pieces_of_any_bytes_add_up_to_their_decoding(data: bytes) -> None:
    assert "".join(pieces_of(data)) == decode(data)
