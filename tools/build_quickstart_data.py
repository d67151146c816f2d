"""Build the quickstart's prompts from the Dolly rows: filter, split by hash, add constraints, decontaminate.

Usage: python tools/build_quickstart_data.py DATA_DIR, where DATA_DIR holds train/ and eval_public/.
The same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "src/postgrad/recipes/data/quickstart.jsonl.gz"
FINGERPRINTS = ROOT / "tests/data/eval_public_prompts.bin"

SPLITS = (("sft", 0.25), ("rm", 0.25), ("rl", 0.25), ("heldout", 0.15), ("heldout_unseen", 0.10))
RUN_WORDS = 13
MAX_PER_TEMPLATE = 30

SEEN_KINDS = ("max_words", "one_sentence", "lowercase", "starts_with", "ends_with")
UNSEEN_KINDS = ("no_commas", "min_sentences", "quoted")
VALUES = {"starts_with": "Answer:", "ends_with": "!", "min_sentences": 2}
PHRASES = {
    "max_words": ("Use at most {} words.", "Answer in {} words or fewer.", "Keep it to no more than {} words."),
    "one_sentence": (
        "Answer in one sentence.",
        "Reply with a single sentence.",
        "Your answer must be exactly one sentence.",
    ),
    "lowercase": ("Write only in lowercase letters.", "Use no capital letters.", "Answer entirely in lowercase."),
    "starts_with": (
        'Begin your answer with "{}".',
        'Start your reply with "{}".',
        'The first thing you write must be "{}".',
    ),
    "ends_with": (
        "End with an exclamation mark.",
        "Finish your answer with an exclamation mark.",
        'The last character of your answer must be "{}".',
    ),
    "no_commas": ("Do not use any commas.", "Write your answer without commas."),
    "min_sentences": ("Write at least two sentences.", "Use two or more sentences."),
    "quoted": (
        "Put your whole answer in double quotation marks.",
        "Wrap your entire answer in double quotation marks.",
    ),
}

# The fields of eval_public that can hold what a model is asked; answers, labels and ids are left out.
PROMPT_KEYS = frozenset(
    (
        *("instruction", "instructions", "instances", "input", "prompt", "question", "Question", "qText", "Body"),
        *("goal", "Goal", "problem", "text", "claim", "template", "turns", "user_prompt", "messages"),
        *("context", "passage", "sentence_with_blank", "blurb", "buggy", "design"),
    )
)

FORMAT_WORDS = re.compile(
    r"\b(bullet\w*|number(ed)? list|numbered|table|comma.separated|common separated|haiku|poem|limerick|rhymes?|lyrics|"
    r"code|sql|python|json|html|regex|script|equation|email|tweet|essay|story|translate|rewrite|summar\w+|extract|"
    r"paraphrase|alphabetical\w*)\b",
    re.I,
)
MISSING_CONTEXT = re.compile(
    r"\b(passages?|paragraphs?|excerpts?|articles? (above|below)|given (this|the|a|these)|context|snippets?|"
    r"(reference|some|this|the|to) texts?|according to (the|this)|"
    r"(is|are|of|in|from|was|did) (this|that) (?!year|day)\w+)\b",
    re.I,
)
PERSONAL = re.compile(
    r"\b(I|I'm|I've|I'd|I'll|[Mm]y|[Mm]ine|us)\b(?! of\b)|\b([Aa]re|[Dd]id|[Hh]ave|[Ww]ould) you\b|"
    r"(?<!how )(?<!How )\b[Dd]o you\b|\bof your\b|\byour? (think|opinion|favou?rite)\b"
)
FOREIGN = re.compile(r"\b([Ww]at|welke|hoe|het|een|zijn|und|ist|wer|wie|cual|quien|donde|est|une)\b")
SENSITIVE = re.compile(
    r"\b(sex\w*|porn\w*|rap(e|ed|ist)\b|suicid\w*|kill\w*|murder\w*|terroris\w*|nazi\w*|hitler|genocide|holocaust|"
    r"slaves?|slavery|drugs?|cocaine|heroin|guns?|shooting|ethnicity|racis\w*|gay|transgender|abortion|bombs?)\b",
    re.I,
)
LIST_MARK = re.compile(r"(^|\s)[-*]\s|(^|\s)\(?\d{1,2}[.)](\s|$)|(^|\s)[a-hA-H]\)\s|^\W*\.")
LOST_BREAK = re.compile(r"[a-z0-9)\"] (My|It|He|She|They|We|If|When|Is|Are|This|These|There) ")
LOST_LETTER = re.compile(
    r"(^|[^\w'.-])(?!a\b)[b-hj-z](?=$|[\s,;:])|[A-Z][a-z]+ a(?=$|[,.;:]| [A-Z])|\w'\s(?!\w+)|[a-z][A-Z]{2,}[a-z]|"
    r"(?<![\w'.])(?!(of|to|in|is|on|at|by|an|as|or|it|be|he|we|if|up|no|so|do|us|me|go|am|pm|ad|bc|vs|ft|cm|mm|km|kg|ml|lb|oz|"
    r"mi|de|la|le|el|al|du|di|da|st|nd|rd|th|tv|ex|co|my)\b)[a-z]{2}\b"
)
LOST_APOSTROPHE = re.compile(r"(?<=[a-z]{2}) (s)(?= )|(?<=n) (t)(?= )|(?<=[Yy]ou|hey) (re|ve|ll)(?= )")
DANGLING = re.compile(r"\b(in|of|at|by|is|was|are|to|for|the|a|an|from|on|called|as)\.$")
QUESTION_START = re.compile(
    r"(who|what|when|where|which|why|how|is|are|was|were|do|does|did|can|could|has|have|had|will|would|should)\w*\b",
    re.I,
)
QUESTION_WORD = re.compile(r"\b(who|what|when|where|which|whom|whose|how many|how much|how long)\b", re.I)
REQUEST_START = re.compile(
    r"(name|list|give|tell|identify|classif\w*|categori\w*|group|sort|provide|describe|explain|suggest|think|find|state|"
    r"mention|choose|pick|select|write|define|determine|separate|order|arrange|say|compare|recommend|create|generate)\b",
    re.I,
)


def normalise(text: str) -> str:
    """Lower case, everything but letters and digits turned into single spaces."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def draw(salt: str, text: str) -> int:
    """64 bits that depend on the normalised text alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{normalise(text)}".encode()).digest()[:8], "big")


def split_of(instruction: str) -> str:
    """The split of a base instruction: SHA-256 of its normalised text against the cumulative shares."""
    position = draw("split", instruction) / 2**64
    for name, share in SPLITS:
        position -= share
        if position < 0:
            return name
    return SPLITS[-1][0]


def fingerprint(text: str) -> bytes:
    return hashlib.sha256(normalise(text).encode()).digest()[:8]


def word_runs(text: str) -> Iterator[tuple[str, ...]]:
    words = normalise(text).split()
    return (tuple(words[i : i + RUN_WORDS]) for i in range(len(words) - RUN_WORDS + 1))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def eval_prompts(directory: Path) -> Iterator[str]:
    """Every string under a prompt-like key of every row of every evaluation set."""
    for path in sorted(directory.glob("*/*.jsonl.gz")):
        for row in read_jsonl(path):
            for key, value in row.items():
                if key in PROMPT_KEYS:
                    yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def clean_instruction(text: str) -> str | None:
    """The instruction with final punctuation, or None where it is no short, self-contained English request."""
    text = LOST_APOSTROPHE.sub(lambda m: "'" + m[0].strip(), " ".join(text.split()))
    words = text.split()
    if not 3 <= len(words) <= 18 or not text.isascii() or re.search(r"[<>{}\\|_=~^`]", text):
        return None
    if any(p.search(text) for p in (FORMAT_WORDS, MISSING_CONTEXT, PERSONAL, FOREIGN, SENSITIVE, LOST_LETTER)):
        return None
    if re.search(r"\b(following|these|those)\b", text, re.I) and not re.search(r"[:,?] *\w+.*\w", text):
        return None
    text = text.rstrip(" ,;:-")
    if not re.search(r"[.?!][\"')]?$", text):
        asks = QUESTION_START.match(text) or (QUESTION_WORD.search(text) and not REQUEST_START.match(text))
        text += "?" if asks else "."
    return None if DANGLING.search(text) else text[0].upper() + text[1:]


def clean_response(text: str) -> str | None:
    """The answer on one line with final punctuation, or None where it is mangled, a list or a personal remark."""
    pieces = [piece.strip() for piece in text.split("\n")]
    if any(not re.search(r"[.!?][\"')]?$", piece) or len(piece.split()) < 3 for piece in pieces[:-1]):
        return None
    if any(not re.match(r"[\"'(]?[A-Z0-9]", piece) for piece in pieces[1:]):
        return None
    text = LOST_APOSTROPHE.sub(lambda m: "'" + m[0].strip(), " ".join(" ".join(pieces).split())).rstrip(" ,;:-")
    words = text.split()
    if (
        not 1 <= len(words) <= 24
        or not text.isascii()
        or re.search(r"[<>{}\\|_=~^`\[\]]|https?:|www\.| [.,;:?!]", text)
    ):
        return None
    if any(p.search(text) for p in (PERSONAL, FOREIGN, SENSITIVE, MISSING_CONTEXT, LIST_MARK, LOST_BREAK, LOST_LETTER)):
        return None
    if text.count(":") > 1 or text.count("(") != text.count(")") or text.count('"') % 2:
        return None
    if len(words) >= 6 and "," not in text and sum(w[0].isupper() for w in words) > 0.6 * len(words):
        return None
    if len(words) > 4 and not re.search(r"[.!?][\"')]?$", text):
        text += "."
    return text


def constraint_of(instruction: str, split: str) -> dict[str, Any] | None:
    if split == "sft" or (split != "heldout_unseen" and draw("constrained", instruction) % 2 == 0):
        return None
    kinds = UNSEEN_KINDS if split == "heldout_unseen" else SEEN_KINDS
    kind = kinds[draw("kind", instruction) % len(kinds)]
    if kind == "max_words":
        return {"kind": kind, "value": 8 + draw("value", instruction) % 8}
    return {"kind": kind, "value": VALUES[kind]} if kind in VALUES else {"kind": kind}


def phrase_of(instruction: str, constraint: dict[str, Any]) -> str:
    phrases = PHRASES[constraint["kind"]]
    return phrases[draw("phrase", instruction) % len(phrases)].format(constraint.get("value"))


def base_instruction(row: dict[str, Any]) -> str:
    """The prompt without its constraint's sentence."""
    prompt: str = row["prompt"]
    for constraint in row["constraints"]:
        endings = [" " + p.format(constraint.get("value")) for p in PHRASES[constraint["kind"]]]
        prompt = next(prompt.removesuffix(e) for e in endings if prompt.endswith(e))
    return prompt


def make_row(number: str, instruction: str, response: str) -> dict[str, Any]:
    split = split_of(instruction)
    constraint = constraint_of(instruction, split)
    return {
        "id": f"dolly-{number}",
        "prompt": f"{instruction} {phrase_of(instruction, constraint)}" if constraint else instruction,
        "reference": response,
        "constraints": [constraint] if constraint else [],
        "split": split,
        "source": "dolly_partial",
    }


def candidates(path: Path) -> Iterator[dict[str, Any]]:
    """Clean rows, one per normalised instruction, at most MAX_PER_TEMPLATE that open with the same five words."""
    seen: set[str] = set()
    openings: Counter[str] = Counter()
    for source in read_jsonl(path):
        if source["likely_truncated"] or source["mentions_missing_context"]:
            continue
        instruction, response = clean_instruction(source["instruction"]), clean_response(source["response"])
        if not instruction or not response or normalise(instruction) in seen:
            continue
        opening = " ".join(normalise(instruction).split()[:5])
        if openings[opening] >= MAX_PER_TEMPLATE:
            continue
        seen.add(normalise(instruction))
        openings[opening] += 1
        yield make_row(source["id"].rsplit("-", 1)[1], instruction, response)


def contaminated(rows: Iterable[dict[str, Any]], prompts: Iterable[str]) -> set[str]:
    """Ids of rows whose prompt, or whose base instruction, equals or shares a 13-word run with an evaluation prompt."""
    whole: dict[str, set[str]] = {}
    runs: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        for text in (row["prompt"], base_instruction(row)):
            whole.setdefault(normalise(text), set()).add(row["id"])
            for run in word_runs(text):
                runs.setdefault(run, set()).add(row["id"])
    hit: set[str] = set()
    for prompt in prompts:
        hit |= whole.get(normalise(prompt), set())
        for run in word_runs(prompt):
            hit |= runs.get(run, set())
    return hit


def main(data_dir: Path) -> None:
    rows = list(candidates(data_dir / "train/dolly_partial/dolly_partial.jsonl.gz"))
    prompts = sorted({normalise(p) for p in eval_prompts(data_dir / "eval_public")} - {""})
    dropped = contaminated(rows, prompts)
    rows = [row for row in rows if row["id"] not in dropped]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    ROWS.write_bytes(gzip.compress(text.encode(), mtime=0))
    FINGERPRINTS.parent.mkdir(parents=True, exist_ok=True)
    FINGERPRINTS.write_bytes(b"".join(sorted({fingerprint(p) for p in prompts})))
    counts = Counter(row["split"] for row in rows)
    sys.stdout.write(f"{len(rows)} rows {dict(counts)}; {len(dropped)} dropped; {len(prompts)} evaluation prompts\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: build_quickstart_data.py DATA_DIR (the directory that holds train/ and eval_public/)")
    main(Path(sys.argv[1]))
