"""What models write, as HTML that can do nothing: Markdown, code and maths; no tags, no images, no scripts."""

from __future__ import annotations

import difflib
import html
import re
from collections import Counter
from functools import cache, lru_cache
from typing import Any

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

MAX_RENDERED = 50_000
"""Characters from which on a text is shown as it is: nobody needs the headings of a book, and a browser must live."""
MAX_ALIKE = 100_000
"""Pairs of equal words that a diff chooses among: some seconds at the worst."""


@lru_cache(maxsize=64)
def to_html(text: str) -> str:
    """Tags in the text are shown, not obeyed; images are links that load nothing."""
    if len(text) > MAX_RENDERED:
        return f'<pre class="pg-plain">{html.escape(text)}</pre>'
    rendered: str = _markdown().render(text)
    return rendered


def diff_html(before: str, after: str) -> str:
    """Word by word what was struck out and what was put in; line by line where that would take too long."""
    old, new = (_pieces(text, r"\s+|[^\s]+") for text in (before, after))
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    kept = "".join(old[:head]), "".join(old[len(old) - tail :])
    old, new = old[head : len(old) - tail], new[head : len(new) - tail]
    for pattern in (r"[^\n]*\n|[^\n]+", r"(?s).+"):
        if _alike(old, new) > MAX_ALIKE:
            old, new = (_pieces("".join(part), pattern) for part in (old, new))
    pieces = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        struck, put = html.escape("".join(old[i:j])), html.escape("".join(new[k:m]))
        if tag == "equal":
            pieces.append(struck)
            continue
        pieces += [f"<del>{struck}</del>"] if struck else []
        pieces += [f"<ins>{put}</ins>"] if put else []
    return f'<div class="pg-diff">{html.escape(kept[0])}{"".join(pieces)}{html.escape(kept[1])}</div>'


def _pieces(text: str, pattern: str) -> list[str]:
    return re.findall(pattern, text)


def _alike(old: list[str], new: list[str]) -> int:
    """Pairs of equal pieces."""
    counts = Counter(new)
    return sum(counts[piece] for piece in old)


def _common(old: list[str], new: list[str]) -> int:
    """How many pieces both begin with."""
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


@cache
def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "highlight": _code}).enable("table")
    parser.disable("image")
    parser.use(dollarmath_plugin, renderer=_maths, double_inline=True, allow_digits=False)
    parser.add_render_rule("link_open", _link_open)
    return parser


def _link_open(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    """A link says where it leads and tells that page nothing."""
    target = html.escape(str(tokens[index].attrs.get("href", "")), quote=True)
    return f'<a href="{target}" title="{target}" target="_blank" rel="noopener noreferrer nofollow">'


def _maths(content: str, options: dict[str, Any]) -> str:
    try:
        return convert(content.strip(), display="block" if options.get("display_mode") else "inline")
    except Exception:  # noqa: BLE001 - what the converter cannot read is shown as it was written
        return f"<code>{html.escape(content)}</code>"


def _code(content: str, language: str, attributes: str) -> str:
    try:
        lexer = get_lexer_by_name(language) if language else None
    except ClassNotFound:
        lexer = None
    if lexer is None:
        return html.escape(content)
    coloured: str = highlight(content, lexer, HtmlFormatter(nowrap=True))
    return coloured


@cache
def code_css() -> str:
    """Colours of code in light and dark."""
    formatters = {"light": HtmlFormatter(style="default"), "dark": HtmlFormatter(style="monokai")}
    return "\n".join(
        f.get_style_defs(f"body.body--{tone} pre")  # type: ignore[no-untyped-call]
        for tone, f in formatters.items()
    )
