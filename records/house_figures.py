"""Figures of a checkout's source: `python records/house_figures.py [PATH] [--list]`; JSON on standard output.

Needs nothing but Python, and reads the files without importing them, so that any two states of the code are measured
alike. Only the keys of a scenario are asked of the checkout itself, in a process of its own, by the Python that runs
this; it needs what `pip install '.[simulation]'` brings.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

PARTS = ("compression", "client", "server", "simulations")
PUBLIC_FLOWER = (
    "flwr.app",
    "flwr.clientapp",
    "flwr.clientapp.mod",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
    "flwr.simulation",
)
GENERATED = ("_pb2.py", "_pb2_grpc.py")
NAMED_TUPLE_METHODS = {"_replace", "_asdict", "_fields", "_make"}
COUNT_KEYS = """
import json, sys
from pathlib import Path
try:
    from fedpress.simulations.scenario import template
    from fedpress.simulations.scenario.scenario import Scenario
except ImportError:  # before the folders
    from fedpress.simulations import init as template
    from fedpress.simulations.scenario import Scenario

schema = Scenario.model_json_schema()
definitions = schema.get("$defs", {})

def keys(node, prefix=""):
    node = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    found = set()
    for name, below in node.get("properties", {}).items():
        found |= keys(below, f"{prefix}{name}.") | {f"{prefix}{name}"}
    for below in [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", []), node.get("items", {})]:
        found |= keys(below, prefix) if below else set()
    return found

template.write(Path(sys.argv[1]))
front = [line.strip().lstrip("#- ") for line in (Path(sys.argv[1]) / "scenario.yaml").read_text().splitlines()]
key = lambda line: line.partition(":")[0]
names = {path.rpartition(".")[2] for path in keys(schema)}
shown = [line for line in front if ":" in line and key(line) in names]
print(json.dumps({"all": len(keys(schema)), "front": len(shown)}))
"""


class Module(NamedTuple):
    """A source file: its dotted name below `fedpress`, its path, text and syntax tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        """All lines of the file."""
        return len(self.text.splitlines())

    @property
    def folder(self) -> str:
        """The sub-package that it is in; itself, if it is the `__init__` of one."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


def read(root: Path) -> list[Module]:
    """Every module of the four folders, and of `.pkg/fedpress` itself, but for generated ones."""
    paths = [path for part in PARTS for path in sorted((root / part).rglob("*.py"))]
    face = root / ".pkg" / "fedpress" / "__init__.py"
    modules = []
    for path in [*paths, *([face] if face.exists() else [])]:
        if path.name.endswith(GENERATED):
            continue
        text = path.read_text(encoding="utf-8")
        parts = () if path == face else path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts and parts[-1] == "__init__" else parts)
        modules.append(Module(name, path.relative_to(root), text, ast.parse(text)))
    return modules


def imports(module: Module, known: set[str]) -> set[str]:
    """The modules of fedpress that a module imports, also inside functions, but not for type checkers only."""
    skipped = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    named: set[str] = set()
    for node in ast.walk(module.tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            named |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(["fedpress", *module.folder.split(".")][: len(module.folder.split(".")) + 2 - node.level])
            named |= {".".join(filter(None, [base, node.module, alias.name])) for alias in node.names}
    found = set()
    for name in named:
        short = name.removeprefix("fedpress.") if name.startswith("fedpress.") else ""
        while short and short not in known:
            short = short.rpartition(".")[0]
        if short and short != module.name:
            found.add(short)
    return found


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan 1972, "Depth-first search")."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    result: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in graph.get(node, ()):
            if after not in index:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], index[after])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                result.append(sorted(component))

    sys.setrecursionlimit(10_000)
    for node in graph:
        if node not in index:
            visit(node)
    return sorted(result)


def siblings(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows between what lies side by side in one folder: modules and sub-packages, seen from outside."""
    arrows: dict[str, set[str]] = defaultdict(set)
    for source, targets in graph.items():
        for target in targets:
            a, b = source.split("."), target.split(".")
            common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
            if common is not None:
                arrows[".".join(a[: common + 1])].add(".".join(b[: common + 1]))
    return arrows


def lines_of_code(module: Module) -> int:
    """Lines that hold code: not those of docstrings and other strings that stand alone, of comments, and empty ones."""
    passed = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in passed:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


def functions(module: Module) -> Iterator[tuple[str, int]]:
    """Each function with its length in lines, from `def` to its last line, without its docstring."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
            yield f"{module.name}.{node.name}", (node.end_lineno or 0) - node.lineno + 1 - docstring


def classes(modules: list[Module]) -> Iterator[tuple[Module, ast.ClassDef]]:
    """Each class, also nested ones."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                yield module, node


def fields(node: ast.ClassDef) -> set[str]:
    """The names that a class declares: with a type, or as arguments of its constructor."""
    typed = [n.target for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    constructors = [n.args for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    arguments = [argument.arg for args in constructors for argument in [*args.args, *args.kwonlyargs]]
    return {name.id for name in typed} | set(arguments) - {"self"}


def validated(modules: list[Module]) -> set[str]:
    """The names of the classes that pydantic checks: what a scenario or a result is read into."""
    bases = {node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases} for _, node in classes(modules)}
    names = {"BaseModel"}
    while more := {name for name, above in bases.items() if above & names} - names:
        names |= more
    return names


def declared_twice(modules: list[Module]) -> list[tuple[str, str, list[str]]]:
    """Twins: a class that pydantic checks and another, with three names and half of the shorter list in common."""
    checked = validated(modules)
    declared = [(module, node.name, fields(node)) for module, node in classes(modules)]
    declared = [entry for entry in declared if len(entry[2]) >= 3]
    twins = []
    for one, other in combinations(declared, 2):
        if (one[1] in checked) == (other[1] in checked):
            continue
        shared = one[2] & other[2]
        if len(shared) >= 3 and 2 * len(shared) >= min(len(one[2]), len(other[2])):
            twins.append((f"{one[0].name}.{one[1]}", f"{other[0].name}.{other[1]}", sorted(shared)))
    return twins


def underscored(modules: list[Module]) -> list[str]:
    """Where code reaches for an underscored name of another object, of no module and of no class that it is in."""
    ours = {n.name for _, node in classes(modules) for n in node.body if isinstance(n, ast.FunctionDef)}
    ours = set().union(ours, *(fields(node) for _, node in classes(modules))) - NAMED_TUPLE_METHODS
    found = []
    for module in modules:
        names = {
            alias.asname or alias.name
            for n in ast.walk(module.tree)
            if isinstance(n, ast.ImportFrom | ast.Import)
            for alias in n.names
        }
        owner: dict[int, set[str]] = {}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                mine = fields(node) | {
                    n.name for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
                }
                mine |= {
                    n.attr
                    for n in ast.walk(node)
                    if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"
                }
                owner.update({id(inner): mine for inner in ast.walk(node)})
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
                continue
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            of_super = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
            of_module = isinstance(node.value, ast.Name) and node.value.id in names
            if of_self or of_super or of_module or node.attr not in ours or node.attr in owner.get(id(node), ()):
                continue
            found.append(f"{module.path}:{node.lineno} {ast.unparse(node)}")
    return found


def insides_of_flower(modules: list[Module]) -> list[str]:
    """Imports of modules of flwr that its documentation does not name."""
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "flwr":
                if node.module not in PUBLIC_FLOWER:
                    found.append(f"{module.path}:{node.lineno} {node.module}")
            elif isinstance(node, ast.Import):
                insides = [a.name for a in node.names if a.name.startswith("flwr.") and a.name not in PUBLIC_FLOWER]
                found += [f"{module.path}:{node.lineno} {name}" for name in insides]
    return found


def scenario_keys(root: Path) -> dict[str, int] | str:
    """How many keys a scenario has, and how many of them `fedpress init` writes."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(root / ".pkg"), "FLWR_TELEMETRY_ENABLED": "0"}
        command = [sys.executable, "-c", COUNT_KEYS, folder]
        ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    return json.loads(ended.stdout) if ended.returncode == 0 else ended.stderr.strip().splitlines()[-1]


def measure(root: Path, details: bool = False) -> dict[str, Any]:
    """All figures of a checkout; with `details` the names behind the counts."""
    modules = read(root)
    known = {module.name for module in modules}
    graph = {module.name: imports(module, known) for module in modules}
    lengths = sorted((length, name) for module in modules for name, length in functions(module))
    files = sorted((module.lines, str(module.path)) for module in modules)
    homes: dict[str, set[str]] = defaultdict(set)
    for module, node in classes(modules):
        if not node.name.startswith("_"):
            homes[node.name].add(module.name)
    equal = {name: sorted(where) for name, where in sorted(homes.items()) if len(where) > 1}
    twins = declared_twice(modules)
    reached, flower = underscored(modules), insides_of_flower(modules)
    in_modules, in_folders = circles(graph), circles(siblings(graph))
    figures: dict[str, Any] = {
        "lines": sum(module.lines for module in modules),
        "lines of code, without docstrings, comments and empty lines": sum(map(lines_of_code, modules)),
        "files": len(modules),
        "median file, lines": statistics.median(length for length, _ in files),
        "longest file": files[-1],
        "functions": len(lengths),
        "median function, lines": statistics.median(length for length, _ in lengths),
        "95th percentile of functions, lines": lengths[int(0.95 * len(lengths))][0],
        "longest function": lengths[-1],
        "circles of modules": [len(circle) for circle in in_modules],
        "circles of folders": [len(circle) for circle in in_folders],
        "keys of a scenario": scenario_keys(root),
        "settings declared twice": {"pairs": len(twins), "names": sum(len(shared) for _, _, shared in twins)},
        "class names of two meanings": len(equal),
        "underscored names of others": len(reached),
        "sites in Flower's insides": {
            "imports": len(flower),
            "files": len({site.partition(":")[0] for site in flower}),
        },
        "depth of folders": {
            "most": max(len(m.path.parts) for m in modules) - 1,
            "most files in one": most_files(modules),
        },
    }
    if details:
        figures["details"] = {
            "circles": in_modules + in_folders,
            "twins": twins,
            "equal": equal,
            "underscored": reached,
            "flower": flower,
        }
    return figures


def most_files(modules: list[Module]) -> tuple[int, str]:
    """The folder with most files."""
    count: dict[str, int] = defaultdict(int)
    for module in modules:
        count[str(module.path.parent)] += 1
    return max((number, folder) for folder, number in count.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("path", nargs="?", type=Path, default=Path(__file__).parents[1], help="a checkout")
    parser.add_argument("--list", action="store_true", help="the names behind the counts, too")
    chosen = parser.parse_args()
    print(json.dumps(measure(chosen.path.resolve(), chosen.list), indent=2))
