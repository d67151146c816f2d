"""`postgrad eval`: what a model does when it is asked, counted. Heavy imports wait until a command needs them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from postgrad.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from postgrad.types import Completion, Example

eval_app = typer.Typer(no_args_is_help=True, help="Examine a model: limits, languages.")

Workspace = Annotated[
    Path, typer.Option(envvar="POSTGRAD_WORKSPACE", help="Holds the released policy; answers go into its evals/.")
]
Model = Annotated[str | None, typer.Argument(help="Name, directory or id of a round; the released policy if left out.")]
System = Annotated[str, typer.Option(help="System message; the template's own if left out.")]
Prompts = Annotated[Path | None, typer.Option(help="Ask these instead of the packaged ones; docs/evaluations.md.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Of an answer.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the numbers and every answer here instead.")]
DEFAULT_WORKSPACE = Path("workspace")


@eval_app.command()
def limits(
    model: Model = None,
    against: Annotated[str | None, typer.Option(help="A model to compare with, asked the same.")] = None,
    prompts: Prompts = None,
    system: System = "",
    max_tokens: MaxTokens = 80,
    workspace: Workspace = DEFAULT_WORKSPACE,
    json_: Json = None,
) -> None:
    """Does it claim what it cannot do, and does it refuse what it can?"""
    from postgrad.evals.limits import compare, read_pairs, summarise
    from postgrad.evals.stance import stance
    from postgrad.recipes import limits_eval_path

    pairs = read_pairs(prompts or limits_eval_path())
    asked = [
        {"id": pair.id, "capability": pair.capability, "side": side, "prompt": text}
        for side in ("beyond", "within")
        for pair in pairs
        for text in (pair.beyond if side == "beyond" else pair.within,)
    ]
    examples = _examples((f"{row['id']}/{row['side']}", row["prompt"]) for row in asked)
    answered: dict[str, list[dict[str, Any]]] = {}
    models = [against, model] if against else [model]
    for name, completions in _answers(models, examples, system, max_tokens, workspace).items():
        answered[name] = [
            {**row, "answer": c.text, "finish_reason": c.finish_reason, "stance": stance(c.text)}
            for row, c in zip(asked, completions, strict=True)
        ]
    result: dict[str, Any] = {"summary": {name: summarise(rows) for name, rows in answered.items()}}
    if against:
        result["change"] = compare(*answered.values())
    _show(_limits_table(result["summary"]))
    if against:
        _show(_change_table(result["change"], *answered))
    _save("limits", list(answered)[-1], {**result, "answers": answered}, workspace, json_)


@eval_app.command()
def languages(
    model: Model = None,
    prompts: Prompts = None,
    system: System = "",
    max_tokens: MaxTokens = 80,
    workspace: Workspace = DEFAULT_WORKSPACE,
    json_: Json = None,
) -> None:
    """Trained in English, asked in Spanish, French, German and Chinese: right language, right behaviour?"""
    from postgrad.evals.languages import LANGUAGES, detector, judge, read_tasks, summarise
    from postgrad.recipes import languages_eval_path

    asked = [(task, language) for language in LANGUAGES for task in read_tasks(prompts or languages_eval_path())]
    detect = detector()
    examples = _examples((f"{task.id}/{language}", task.prompts[language]) for task, language in asked)
    ((name, completions),) = _answers([model], examples, system, max_tokens, workspace).items()
    rows = [
        {
            "id": task.id,
            "language": language,
            "check": task.check,
            "prompt": task.prompts[language],
            "answer": c.text,
            "finish_reason": c.finish_reason,
            **judge(task, language, c.text, c.finish_reason, detect),
        }
        for (task, language), c in zip(asked, completions, strict=True)
    ]
    summary = summarise(rows)
    _show(_languages_table(name, summary))
    _save("languages", name, {"model": name, "summary": summary, "answers": rows}, workspace, json_)


def _examples(prompts: Iterable[tuple[str, str]]) -> list[Example]:
    from postgrad.types import Conversation, Example, Message

    return [Example(name, Conversation((Message("user", text),))) for name, text in prompts]


def _answers(
    models: Sequence[str | None], examples: Sequence[Example], system: str, max_tokens: int, workspace: Path
) -> dict[str, list[Completion]]:
    """Greedy answers of each model to every example, by its name.

    Raises:
        ConfigError: no such model, one model twice, or no room for an answer.
    """
    from postgrad.serve.load import find_model

    found = [find_model(model, workspace) for model in models]
    if len({path.resolve() for path, _ in found}) < len(found):
        raise ConfigError(f"--against is the same model, {found[0][1]!r}; name another")
    return {name: _of_model(path, name, examples, system, max_tokens) for path, name in found}


def _of_model(path: Path, name: str, examples: Sequence[Example], system: str, max_tokens: int) -> list[Completion]:
    import asyncio

    from rich.console import Console
    from rich.progress import Progress

    from postgrad.data.readers import with_system
    from postgrad.rounds.context import completions, sample_all
    from postgrad.serve.load import load_engine
    from postgrad.text.template import check_fits
    from postgrad.types import SamplingParams

    engine, renderer, context = load_engine(path)
    asked = [with_system(example, system) for example in examples]
    for example in asked:
        ids = renderer.render_prompt(example.prompt, name=example.id)
        check_fits(ids, context - max_tokens, f"prompt {example.id!r} with an answer of {max_tokens} tokens")
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"{name} answers", total=len(asked))
        groups = asyncio.run(
            sample_all(
                renderer,
                engine,
                asked,
                params,
                group_size=1,
                seed=0,
                progress=lambda done, total: progress.update(bar, completed=done),
            )
        )
    return completions(groups)


def _limits_table(summary: Mapping[str, Mapping[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("model", "capability", "false claims", "limits admitted", "over-refusal", "cut off")
    for name, found in summary.items():
        for capability, of in (("all", found), *found["capabilities"].items()):
            shares = (_interval(of[key]) for key in ("false_claims", "admitted", "over_refusal"))
            table.add_row(name if capability == "all" else "", capability, *shares, f"{of['cut_off']:.0%}")
        table.add_section()
    return table


def _change_table(change: Mapping[str, Any], before: str, after: str) -> Table:
    from rich.table import Table

    table = Table(f"{after} against {before}", "change, in points")
    for key, title in (
        ("false_claims", "false claims"),
        ("admitted", "limits admitted"),
        ("over_refusal", "over-refusal"),
    ):
        table.add_row(title, _interval(change[key], signed=True))
    ratio = change["false_claims_ratio"]
    if ratio:
        high = "no bound" if ratio["high"] is None else f"{ratio['high']:.2f}"
        said = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {high}]"
    table.add_row("false claims, times what they were", said if ratio else "none before")
    return table


def _languages_table(name: str, summary: Mapping[str, Mapping[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(
        "language", "right language", "does as asked", "both", "ends", "fact", "sentences", "limit", title=name
    )
    for language, found in summary.items():
        shares = (_interval(found[key]) for key in ("right_language", "obeys", "right", "ends"))
        table.add_row(language, *shares, *(_interval(of) for of in found["checks"].values()))
    return table


def _interval(found: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if found is None:
        return "-"
    mark = "+" if signed else ""
    value, low, high = (f"{100 * found[key]:{mark}.0f}" for key in ("value", "low", "high"))
    return f"{value}{'' if signed else '%'} [{low}, {high}]"


def _show(table: Table) -> None:
    from rich.console import Console

    Console().print(table)


def _save(kind: str, name: str, result: Mapping[str, Any], workspace: Path, path: Path | None) -> None:
    """Numbers and answers as JSON, and where they went."""
    from rich.console import Console

    from postgrad.rounds.context import write_json

    target = path or workspace / "evals" / f"{kind}-{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, result)
    Console().print(f"every answer: {target}", markup=False, highlight=False, soft_wrap=True)
