"""The house of docs/design: rows import only from rows above, files and functions stay short, torch stays out."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80

# The command line wires everything, so it also sits below the recipes that it runs.
ROWS = (
    ("types", "errors"),
    ("config", "metrics", "ops", "text", "sandbox", "db"),
    ("data", "models"),
    ("protocols", "run"),
    ("trainer", "engine", "envs", "graders", "feedback", "watch"),
    ("rollout",),
    ("methods", "evals", "gates", "studies"),
    ("rounds",),
    ("serve", "web", "bench"),
    ("recipes", "testing"),
    ("label_cli", "eval_cli", "compare_cli"),
    ("cli",),
    ("__main__",),
)
ROW_OF = {unit: row for row, units in enumerate(ROWS) for unit in units}
WITHOUT_TORCH = ("feedback", "db", "evals", "gates", "watch", "web")
LIGHT = ("postgrad", "postgrad.cli")
TORCH = {"torch", "transformers", "peft"}
HEAVY = TORCH | {"matplotlib", "fastapi"}

Sources = Mapping[str, str]  # dotted module name -> text; a package carries its own name, not __init__


def package_sources() -> dict[str, str]:
    sources = {}
    for path in sorted((ROOT / "src/postgrad").rglob("*.py")):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def unit_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported_names(node: ast.AST) -> list[str]:
    """Dotted names that an import statement may load; `from a import b` may load a and a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: write {node.module!r} as an absolute import"
        return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def module_level_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs on import: no function bodies, no `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from module_level_nodes(child)


def layering_violations(sources: Sources) -> list[str]:
    found = []
    for module, text in sources.items():
        unit = unit_of(module)
        if unit and unit not in ROW_OF:
            found.append(f"{unit} has no row in the house")
            continue
        statements = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom))
        for statement in statements:
            targets = {unit_of(name) for name in imported_names(statement) if name.startswith("postgrad.")}
            for target in sorted(targets & ROW_OF.keys() - {unit}):
                if not unit or ROW_OF[target] >= ROW_OF[unit]:
                    found.append(f"{unit or 'postgrad'} imports {target} ({module}, line {statement.lineno})")
    return found


def reached_on_import(start: str, sources: Sources) -> dict[str, str]:
    """Top-level names of other packages that importing `start` loads -> the module that imports them."""
    reached: dict[str, str] = {}
    seen: set[str] = set()
    queue = [start]
    while queue:
        module = queue.pop()
        parents = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
        queue.extend(parent for parent in parents if parent not in seen)
        if module in seen:
            continue
        seen.add(module)
        for node in module_level_nodes(ast.parse(sources.get(module, ""))):
            for name in imported_names(node):
                if name in sources:
                    queue.append(name)
                elif not name.startswith("postgrad"):
                    reached.setdefault(name.split(".")[0], module)
    return reached


def long_functions(text: str) -> list[tuple[str, int]]:
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = ((f.name, (f.end_lineno or f.lineno) - f.lineno + 1) for f in functions)
    return [(name, lines) for name, lines in lengths if lines > MAX_FUNCTION_LINES]


def python_files() -> list[Path]:
    return [p for folder in ("src", "tests", "tools") for p in sorted((ROOT / folder).rglob("*.py"))]


def test_rows_import_only_from_rows_above_and_never_sideways() -> None:
    assert layering_violations(package_sources()) == []


def test_every_folder_of_the_package_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "src/postgrad").rglob("*.py")}
    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


def test_ops_know_no_package_types() -> None:
    allowed = {"torch", "postgrad", "__future__", "collections", "dataclasses", "functools", "math", "pathlib"} | {
        "platform",
        "typing",
    }
    for module, text in package_sources().items():
        if unit_of(module) == "ops":
            names = [name for node in ast.walk(ast.parse(text)) for name in imported_names(node)]
            assert {name.split(".")[0] for name in names} <= allowed, module
            assert all(unit_of(name) == "ops" for name in names if name.startswith("postgrad.")), module


def test_label_store_arena_gate_and_pages_import_without_torch() -> None:
    sources = package_sources()
    for module in sources:
        if unit_of(module) in WITHOUT_TORCH:
            reached = reached_on_import(module, sources)
            assert not TORCH & reached.keys(), f"{module} reaches torch: {reached}"


def test_package_and_command_line_import_nothing_heavy() -> None:
    sources = package_sources()
    for module in LIGHT:
        assert module in sources
        reached = reached_on_import(module, sources)
        assert not HEAVY & reached.keys(), f"{module} reaches {HEAVY & reached.keys()}: {reached}"


def test_the_process_that_starts_what_is_timed_loads_no_torch() -> None:
    sources = package_sources()
    for module in ("postgrad.bench.command", "postgrad.models.pull"):
        assert not TORCH & reached_on_import(module, sources).keys(), module


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in python_files()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_80_lines() -> None:
    found = {str(p.relative_to(ROOT)): long_functions(p.read_text(encoding="utf-8")) for p in python_files()}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_an_upward_import_is_reported_by_name() -> None:
    sources = {"postgrad.run": "def start():\n    from postgrad.methods.ppo import PPO\n"}
    assert layering_violations(sources) == ["run imports methods (postgrad.run, line 2)"]


def test_a_sideways_import_and_a_unit_outside_the_house_are_reported() -> None:
    sources = {"postgrad.evals.arena": "from postgrad import gates, types", "postgrad.utils": ""}
    assert layering_violations(sources) == [
        "evals imports gates (postgrad.evals.arena, line 1)",
        "utils has no row in the house",
    ]


def test_torch_is_found_through_another_module_but_not_inside_a_function() -> None:
    sources = {
        "postgrad": "",
        "postgrad.gates": "from postgrad.config import Recipe",
        "postgrad.config": "import torch.nn as nn",
        "postgrad.db": "def load():\n    import torch\n",
    }
    assert reached_on_import("postgrad.gates", sources) == {"torch": "postgrad.config"}
    assert reached_on_import("postgrad.db", sources) == {}


def test_a_function_of_81_lines_is_too_long_and_one_of_80_is_not() -> None:
    assert long_functions("def f():\n" + "    pass\n" * 79) == []
    assert long_functions("def f():\n" + "    pass\n" * 80) == [("f", 81)]
