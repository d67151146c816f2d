"""Conversations to token ids and loss masks, and back."""

from postgrad.text.template import DEFAULT_TEMPLATE, Renderer, check_fits
from postgrad.text.tokenizer import load_tokenizer

__all__ = ["DEFAULT_TEMPLATE", "Renderer", "check_fits", "load_tokenizer"]
