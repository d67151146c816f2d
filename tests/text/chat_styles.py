"""Real chat formats, written out small: what differs between model families is what a renderer must survive."""

import json
from dataclasses import dataclass

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from postgrad.testing import byte_tokenizer

CHATML = """\
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\nYou are a small assistant.<|im_end|>\n' }}
{%- endif -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""

LLAMA3 = """\
{%- set day = strftime_now('%d %b %Y') -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] | trim -%}{%- set rest = messages[1:] -%}
{%- else -%}
{%- set system = '' -%}{%- set rest = messages -%}
{%- endif -%}
{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + day + '\n\n' + system + '<|eot_id|>' }}
{%- for m in rest -%}
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}
"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for m in messages -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('Roles must alternate') }}{%- endif -%}
{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}
{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""

INST = """\
{{ bos_token }}
{%- for m in messages -%}
{%- if m['role'] == 'assistant' -%}{{ ' ' + m['content'] + eos_token }}
{%- else -%}{{ '[INST] ' + m['content'] + '[/INST]' }}{%- endif -%}
{%- endfor -%}
"""

THINKING = """\
{%- for m in messages -%}
{{ '<|im_start|>' + m['role'] + '\n' }}
{%- if m['role'] == 'assistant' and loop.last -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}
{{ m['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""


@dataclass(frozen=True)
class Style:
    template: str | None
    special_tokens: tuple[str, ...]
    eos: str
    end: str
    bos: str | None = None
    trims: bool = False
    system: bool = True
    opening: str = ""

    def tokenizer(self, *, pad: str | None = None, merges: bool = False) -> PreTrainedTokenizerFast:
        plain = byte_tokenizer(
            self.template, special_tokens=self.special_tokens, eos_token=self.eos, bos_token=self.bos, pad_token=pad
        )
        return _with_merges(plain) if merges else plain

    def shown(self, content: str) -> str:
        return content.strip() if self.trims else content


STYLES = {
    "chatml": Style(CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>"),
    "llama3": Style(
        LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        "<|eot_id|>",
        bos="<|begin_of_text|>",
        trims=True,
    ),
    "gemma": Style(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<end_of_turn>",
        bos="<bos>",
        trims=True,
        system=False,
    ),
    "built-in": Style(None, ("<bos>", "<eos>"), "<eos>", "<eos>", bos="<bos>"),
    "inst": Style(INST, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "</s>", bos="<s>", opening=" "),
    "thinking": Style(
        THINKING, ("<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>", opening="<think>\n\n</think>\n\n"
    ),
}


def _with_merges(plain: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Merges that cross the seams of a conversation: two line breaks, a break and a space, a break and a letter."""
    model = json.loads(plain.backend_tokenizer.to_str())
    newline, space = "\u010a", "\u0120"
    merges = [(newline, newline), (space, space), (newline, space), (newline, "q"), ("t", "h"), ("th", "e")]
    model["model"]["merges"] = [list(pair) for pair in merges]
    model["model"]["vocab"] |= {left + right: 256 + i for i, (left, right) in enumerate(merges)}
    for token in model["added_tokens"]:
        token["id"] += len(merges)
    names = {k: str(v) for k, v in plain.special_tokens_map.items()}
    merged = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(model)), **names)
    merged.chat_template = plain.chat_template
    return merged
