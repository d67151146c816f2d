import datetime
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from postgrad.errors import DataError
from postgrad.testing import byte_tokenizer
from postgrad.text import DEFAULT_TEMPLATE, Renderer, check_fits
from postgrad.types import Conversation, Example, Message, ToolCall

from .chat_styles import GEMMA, STYLES, Style

RENDERERS = {name: Renderer(style.tokenizer()) for name, style in STYLES.items()}
MERGING = {name: Renderer(style.tokenizer(merges=True)) for name, style in STYLES.items()}

ROLE_LIKE = [
    "\n### Assistant\n",
    "### User\n",
    "assistant\n",
    "<|im_start ",
    "model\n",
    "\n\nsystem:",
    "[/INST ",
    "<eos ",
]
CONTROL = {token for style in STYLES.values() for token in style.special_tokens}
pieces = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(ROLE_LIKE))
content = st.lists(pieces).map("".join).filter(lambda text: not any(token in text for token in CONTROL))
exchanges = st.lists(st.tuples(content, content), min_size=1, max_size=3)
styles = st.sampled_from(sorted(STYLES))


def chat(*contents: str, system: str | None = None) -> Conversation:
    turns = [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(contents)]
    return Conversation((*([Message("system", system)] if system is not None else []), *turns))


def hf_ids(renderer: Renderer, conversation: Conversation, *, generate: bool) -> tuple[int, ...]:
    messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
    return tuple(
        renderer.tokenizer.apply_chat_template(
            messages,
            chat_template=renderer.template,
            add_generation_prompt=generate,
            return_dict=False,
        )
    )


def runs(mask: tuple[bool, ...]) -> list[tuple[int, int]]:
    edges = [t for t in range(len(mask) + 1) if (t < len(mask) and mask[t]) != (t > 0 and mask[t - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))


@settings(max_examples=60, deadline=None)
@given(styles, exchanges, st.none() | content)
def test_prompt_equals_the_one_of_transformers(name: str, turns: list[tuple[str, str]], system: str | None) -> None:
    renderer = RENDERERS[name]
    texts = [text for turn in turns for text in turn]
    conversation = chat(*texts[:-1], system=system if STYLES[name].system else None)
    assert renderer.render_prompt(conversation) == hf_ids(renderer, conversation, generate=True)


@settings(max_examples=60, deadline=None)
@given(styles, exchanges, st.none() | content)
def test_training_ids_equal_the_ones_of_transformers(name: str, turns: list[tuple[str, str]], system: str) -> None:
    renderer = RENDERERS[name]
    conversation = chat(*(t for turn in turns for t in turn), system=system if STYLES[name].system else None)
    assert renderer.render(conversation)[0] == hf_ids(renderer, conversation, generate=False)


@settings(max_examples=80, deadline=None)
@given(styles, exchanges, st.booleans())
@example("chatml", [("a", "\nb"), ("c", "\n\n d")], True)
@example("built-in", [("a\n", "qbc"), ("\n", " \n")], True)
def test_what_precedes_a_trained_turn_is_the_prompt_it_is_sampled_from(
    name: str, turns: list[tuple[str, str]], merges: bool
) -> None:
    renderer = (MERGING if merges else RENDERERS)[name]
    texts = [text for turn in turns for text in turn]
    ids, mask = renderer.render(chat(*texts))
    trained = runs(mask)
    assert len(trained) == len(turns)
    for n, (start, _) in enumerate(trained):
        assert ids[:start] == renderer.render_prompt(chat(*texts[: 2 * n + 1]))


@settings(max_examples=80, deadline=None)
@given(styles, exchanges, st.booleans())
@example("chatml", [("a", "🙂\n"), ("### Assistant\n", "\n### User\nno")], True)
def test_parsing_the_trained_tokens_gives_the_answer_back(
    name: str, turns: list[tuple[str, str]], merges: bool
) -> None:
    renderer = (MERGING if merges else RENDERERS)[name]
    ids, mask = renderer.render(chat(*(text for turn in turns for text in turn)))
    parsed = [renderer.parse(ids[start:end]) for start, end in runs(mask)]
    assert parsed == [Message("assistant", STYLES[name].shown(answer)) for _, answer in turns]


@settings(max_examples=60, deadline=None)
@given(styles, exchanges, st.booleans())
def test_every_observation_is_a_prefix_of_the_next(name: str, turns: list[tuple[str, str]], merges: bool) -> None:
    renderer = (MERGING if merges else RENDERERS)[name]
    texts = [text for turn in turns for text in turn]
    observations = [renderer.render_prompt(chat(*texts[: 2 * n + 1])) for n in range(len(turns))]
    for n, (now, after) in enumerate(itertools.pairwise(observations)):
        assert after[: len(now)] == now
        if name != "thinking":  # shows its reasoning only in the last turn
            ids, mask = renderer.render(chat(*texts[: 2 * n + 2]))
            done = runs(mask)[-1][1]
            assert after[:done] == ids[:done]


@pytest.mark.parametrize("name", sorted(STYLES))
def test_with_merges_a_prompt_still_equals_the_one_of_transformers(name: str) -> None:
    renderer = MERGING[name]
    conversation = chat("the\n\nthing ", "an  answer\n", " then?\n\n", "the end", "a")
    assert renderer.render_prompt(conversation) == hf_ids(renderer, conversation, generate=True)


def test_an_answer_that_would_merge_into_its_header_stays_apart() -> None:
    renderer = MERGING["chatml"]
    conversation = chat("a", "\nb", "c")
    ids = renderer.render_prompt(conversation)
    assert renderer.decode(ids) == renderer.decode(hf_ids(renderer, conversation, generate=True))
    assert len(ids) == len(hf_ids(renderer, conversation, generate=True)) + 1


def test_mask_of_a_tiny_conversation_by_hand() -> None:
    renderer = Renderer(
        byte_tokenizer(
            "{% for m in messages %}{{ m.role[0] ~ m.content ~ '<eos>.' }}{% endfor %}"
            "{% if add_generation_prompt %}a{% endif %}"
        )
    )
    ids, mask = renderer.render(chat("hi", "yo", "k", "é"))
    eos = 257
    assert ids == (
        *(ord("u"), ord("h"), ord("i"), eos, ord(".")),
        *(ord("a"), ord("y"), ord("o"), eos, ord(".")),
        *(ord("u"), ord("k"), eos, ord(".")),
        *(ord("a"), 0xC3, 0xA9, eos, ord(".")),
    )
    assert [int(m) for m in mask] == [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("name", "untrained"),
    [
        (
            "chatml",
            "<|im_start|>system\nYou are a small assistant.<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
            "<|im_start|>assistant\n|\n",
        ),
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n|",
        ),
        ("gemma", "<bos><start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\n|\n"),
        ("built-in", "<bos>### User\nQ<eos>\n### Assistant\n|\n"),
        ("inst", "<s>[INST] Q[/INST]|"),
        ("thinking", "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n|\n"),
    ],
)
def test_headers_and_text_after_the_end_token_are_not_trained(name: str, untrained: str) -> None:
    style, renderer = STYLES[name], RENDERERS[name]
    ids, mask = renderer.render(chat("Q", "A"))
    ((start, end),) = runs(mask)
    decode = renderer.tokenizer.decode
    assert decode(ids[start:end]) == style.opening + "A" + style.end
    assert decode(ids[:start]) + "|" + decode(ids[end:]) == untrained


def test_only_the_chosen_turns_are_trained() -> None:
    renderer = RENDERERS["built-in"]
    ids, mask = renderer.render(chat("a", "one", "b", "two"), train=[3])
    assert [renderer.tokenizer.decode(ids[s:e]) for s, e in runs(mask)] == ["two<eos>"]


def test_a_completion_is_trained_and_its_prompt_is_not() -> None:
    renderer = RENDERERS["chatml"]
    ids, mask = renderer.render_example(Example("r", chat("a", "one", "b"), (Message("assistant", "two"),)))
    assert [renderer.decode(ids[s:e]) for s, e in runs(mask)] == ["two"]


def test_without_a_completion_all_assistant_turns_are_trained() -> None:
    renderer = RENDERERS["chatml"]
    ids, mask = renderer.render_example(Example("r", chat("a", "one", "b", "two")))
    assert [renderer.decode(ids[s:e]) for s, e in runs(mask)] == ["one", "two"]


def test_a_row_without_assistant_turn_is_named() -> None:
    with pytest.raises(DataError, match=r"row 'r7': no assistant turn to train on"):
        RENDERERS["chatml"].render_example(Example("r7", chat("a")))


@pytest.mark.parametrize("name", sorted(STYLES))
def test_pad_equal_to_eos_changes_nothing_and_the_end_is_trained(name: str) -> None:
    style = STYLES[name]
    padded = Renderer(style.tokenizer(pad=style.eos))
    ids, mask = padded.render(chat("Q", "A"))
    assert (ids, mask) == RENDERERS[name].render(chat("Q", "A"))
    assert ids[runs(mask)[-1][1] - 1] == padded.end_id
    assert padded.tokenizer.pad_token_id == padded.tokenizer.eos_token_id


def test_stop_ids_are_eos_the_end_of_turn_and_those_given() -> None:
    tokenizer = STYLES["llama3"].tokenizer()
    found = [tokenizer.convert_ids_to_tokens(i) for i in Renderer(tokenizer).stop_ids]
    assert found == ["<|end_of_text|>", "<|eot_id|>"]
    assert Renderer(tokenizer, stop_ids=[3]).stop_ids == (3, 257, 260)


def test_parse_keeps_the_text_of_a_truncated_turn_as_sampled() -> None:
    renderer = RENDERERS["gemma"]
    assert renderer.parse(list(b" so \n")).content == " so \n"
    assert renderer.parse([*b"so", renderer.end_id, *b"more"]).content == "so"
    assert renderer.parse([*b"a", 256, *b"b", 257]).content == "ab"
    assert renderer.parse([0xF0, 0x9F, renderer.end_id]).content == "\ufffd"


@pytest.mark.parametrize("name", sorted(STYLES))
def test_text_that_would_forge_a_turn_is_refused_and_named(name: str) -> None:
    style: Style = STYLES[name]
    with pytest.raises(DataError, match=r"row 'x': message 1 contains .* control token"):
        RENDERERS[name].render_example(Example("x", chat(f"a{style.end}b", "c")))
    with pytest.raises(DataError, match="message 2 contains"):
        RENDERERS[name].render(chat("a", f"{style.end}"))


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(DataError, match="message 1 holds half a surrogate pair"):
        RENDERERS["chatml"].render_prompt(chat("a\ud83d"))


def test_a_template_that_refuses_a_role_says_so() -> None:
    with pytest.raises(DataError, match=r"row 's': the chat template refuses it \(System role not supported\)"):
        RENDERERS["gemma"].render_example(Example("s", chat("a", "b", system="be brief")))


def test_a_conversation_that_starts_with_the_assistant_or_is_empty_is_refused() -> None:
    for messages in [(), (Message("assistant", "hi"),)]:
        with pytest.raises(DataError, match="starts with a system or user message"):
            RENDERERS["built-in"].render_prompt(Conversation(messages))


def test_tools_are_never_dropped_silently() -> None:
    tools = ({"name": "add"},)
    with pytest.raises(DataError, match="no place for tools"):
        RENDERERS["chatml"].render_prompt(Conversation(chat("a").messages, tools))
    calling = Message("assistant", "", (ToolCall("1", "add", "{}"),))
    with pytest.raises(DataError, match="would drop the tool calls of message 2"):
        RENDERERS["chatml"].render(Conversation((Message("user", "a"), calling)))


def test_tools_and_calls_reach_a_template_that_shows_them() -> None:
    template = (
        "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ m.role ~ ':' ~ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name ~ c.function.arguments.x }}{% endfor %}<eos>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    renderer = Renderer(byte_tokenizer(template))
    call = Message("assistant", "", (ToolCall("1", "add", '{"x": 7}'),))
    answers = (Message("user", "q"), call, Message("tool", "r", tool_call_id="1"), Message("assistant", "z"))
    ids, mask = renderer.render(Conversation(answers, ({"name": "add"},)))
    shown = '[{"name": "add"}]user:q<eos>assistant:add7<eos>tool:r<eos>assistant:z<eos>'
    assert renderer.tokenizer.decode(ids) == shown
    assert [renderer.tokenizer.decode(ids[s:e]) for s, e in runs(mask)] == ["add7<eos>", "z<eos>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}<bos>{{ m.role ~ m.content }}<eos>{% endfor %}", "ignores add_generation_prompt"),
        ("{% for m in messages %}{{ m.content }}.{% endfor %}", "with no special token"),
        ("{% for m in messages %}{{ m.content | upper }}<eos>{% endfor %}", "does not show answers as they are"),
        ("{% for m in messages %}", "the chat template refuses it"),
        (
            "{% for m in messages %}{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<think>{% endif %}",
            "after a different text than it was prompted with",
        ),
        (GEMMA.replace("messages[0]['role'] == 'system'", "messages | length > 3"), "refuses it"),
    ],
)
def test_a_template_that_cannot_be_trained_is_refused_at_once(template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Renderer(byte_tokenizer(template, bos_token="<bos>"))


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no EOS token; name one as eos_token"):
        Renderer(tokenizer)


def test_a_template_that_asks_for_the_date_is_shown_one_fixed_day() -> None:
    tokenizer = STYLES["llama3"].tokenizer()
    messages = [{"role": "user", "content": "Q"}]
    today = datetime.datetime.now().strftime("%d %b %Y")
    shown = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    renderer = Renderer(tokenizer)
    assert renderer.tokenizer.decode(renderer.render_prompt(chat("Q"))) == shown.replace(today, "26 Jul 2024")
    tokenizer.chat_template = renderer.template
    assert Renderer(tokenizer).template == renderer.template


def test_a_given_template_wins_over_the_tokenizers_own_and_the_built_in_is_last() -> None:
    own = STYLES["chatml"].tokenizer()
    assert Renderer(own).template == own.chat_template
    assert Renderer(own, template=DEFAULT_TEMPLATE).template == DEFAULT_TEMPLATE
    assert Renderer(byte_tokenizer()).template == DEFAULT_TEMPLATE


def test_the_named_default_is_taken_from_several_templates() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": DEFAULT_TEMPLATE + " ", "tools": "x"}
    assert Renderer(tokenizer).template == DEFAULT_TEMPLATE + " "
    tokenizer.chat_template = {"tools": "x"}
    with pytest.raises(DataError, match="none named 'default'"):
        Renderer(tokenizer)


def test_fingerprint_follows_template_tokens_and_stop_ids_and_nothing_else() -> None:
    base = Renderer(byte_tokenizer()).fingerprint
    assert len(base) == 64
    used = byte_tokenizer()
    used(["a", "bcd"], padding=False, truncation=True, max_length=2)
    assert Renderer(used).fingerprint == base
    assert Renderer(byte_tokenizer(), stop_ids=[5]).fingerprint != base
    assert Renderer(byte_tokenizer(special_tokens=("<bos>", "<eos>", "<x>"))).fingerprint != base
    assert Renderer(byte_tokenizer(), template=DEFAULT_TEMPLATE + "{# #}").fingerprint != base


def test_a_sequence_longer_than_the_context_is_named_with_its_length() -> None:
    check_fits(range(8), 8, "row 'a'")
    with pytest.raises(DataError, match="row 'a': 9 tokens do not fit into 8"):
        check_fits(range(9), 8, "row 'a'")
