import re

from hypothesis import given
from hypothesis import strategies as st

from postgrad.web.render import MAX_RENDERED, diff_html, to_html


def test_markdown_code_tables_and_maths_are_rendered() -> None:
    page = to_html("**bold**\n\n```python\nx = 1\n```\n\n|a|b|\n|-|-|\n|1|2|\n\n$x^2$ and\n\n$$\\frac{1}{2}$$")
    assert "<strong>bold</strong>" in page
    assert '<pre><code class="language-python">' in page
    assert "<table>" in page
    assert "<msup>" in page
    assert 'display="block"' in page


def test_tags_scripts_and_handlers_are_text() -> None:
    page = to_html("<script>alert(1)</script> <img src=x onerror=alert(1)>\n\n<iframe src='http://x'></iframe>")
    assert "&lt;script&gt;" in page
    assert not re.search("<(script|img|iframe)", page)


def test_script_links_are_not_links_and_others_tell_the_page_nothing() -> None:
    assert "<a" not in to_html("[x](javascript:alert(1)) [y](data:text/html;base64,PHNjcmlwdD4=)")
    assert 'rel="noopener noreferrer nofollow"' in to_html("[x](https://example.com)")


def test_images_load_nothing() -> None:
    assert "<img" not in to_html("![x](https://example.com/track.png)")


def test_maths_that_cannot_be_read_is_shown_as_written() -> None:
    assert "<code>\\frac</code>" in to_html("$\\frac$")


def test_code_in_an_unknown_language_is_escaped() -> None:
    assert "&lt;b&gt;" in to_html("```nosuchlanguage\n<b>\n```")


def test_a_very_long_answer_is_shown_plain_and_whole() -> None:
    page = to_html("<b>" + "word " * MAX_RENDERED)
    assert page.startswith('<pre class="pg-plain">&lt;b&gt;word')
    assert page.count("word") == MAX_RENDERED


def test_a_diff_marks_words_and_escapes_them() -> None:
    page = diff_html("the <b> cat sat", "the dog sat down")
    assert "<del>&lt;b&gt; cat</del>" in page
    assert "<ins>dog</ins>" in page
    assert "<ins> down</ins>" in page


@given(st.text(alphabet="<>&\"'`*_[]()!$\\|#-\n abc:/", max_size=60))
def test_nothing_that_a_model_writes_becomes_a_dangerous_tag(text: str) -> None:
    page = to_html(text).lower()
    for tag in ("<script", "<img", "<iframe", "<svg", "<object", "<style", "<form", "<input"):
        assert tag not in page
    assert 'href="javascript:' not in page


def test_a_diff_of_long_texts_ends_and_keeps_every_word() -> None:
    before = "".join(f"line {i} of it\n" for i in range(20_000))
    after = before.replace("line 5 ", "verse 5 ").replace("line 19000 ", "verse 19000 ")
    page = diff_html(before, after)
    assert re.sub("<del>.*?</del>|</?(ins|div)[^>]*>", "", page, flags=re.DOTALL) == after
    assert page.count("<ins>") == 2
    other = diff_html("old " * 90_000, "new " * 90_000)
    assert (other.count("old"), other.count("new")) == (90_000, 90_000)
