"""Pages that are made of the code: the API by sub-package, and the help of every command."""

import ast
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

from fedpress.simulations.__main__ import main

ROOT = Path(__file__).parents[1]
PARTS = ("compression", "client", "server", "simulations")
WRITTEN_BY_TOOLS = ("_pb2", "_pb2_grpc")
FACE = ROOT / ".pkg" / "fedpress" / "__init__.py"
COMMANDS = "reference/command-line.md"
SOURCES = tempfile.TemporaryDirectory(prefix="fedpress-docs-")


def packages() -> Iterator[tuple[str, list[str]]]:
    """Each sub-package with its public modules, by their dotted names below `fedpress`."""
    folders = [folder for part in PARTS for folder in sorted({path.parent for path in (ROOT / part).rglob("*.py")})]
    for folder in folders:
        package = ".".join(folder.relative_to(ROOT).parts)
        modules = [path.stem for path in sorted(folder.glob("*.py"))]
        public = [name for name in modules if not name.startswith("_") and not name.endswith(WRITTEN_BY_TOOLS)]
        if public:
            yield package, [f"{package}.{name}" for name in public]


def api_page(package: str, modules: list[str]) -> str:
    """The page of a sub-package: what its `__init__` says, if it has one, and then each module."""
    lines = [f"# {package}", ""]
    if (ROOT / package.replace(".", "/") / "__init__.py").exists():
        lines += [f"::: fedpress.{package}", "    options: {members: false, show_root_heading: false}", ""]
    return "\n".join(lines + [f"::: fedpress.{module}\n" for module in modules])


def face_page() -> str:
    """What `import fedpress` brings: its docstring, and where each name is described."""
    tree = ast.parse(FACE.read_text(encoding="utf-8"))
    lines = ["# fedpress", "", "```text", ast.get_docstring(tree) or "", "```", ""]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fedpress."):
            for alias in node.names:
                home = f"{node.module}.{alias.name}"
                private = "._" in node.module
                lines.append(f"::: {home}\n" if private else f"* [`fedpress.{alias.asname or alias.name}`][{home}]")
    return "\n".join(lines)


def command_page() -> str:
    """The help of each command, as `--help` prints it."""

    def sections(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
        context = click.Context(command, info_name=name, parent=parent, terminal_width=80, max_content_width=80)
        path = context.command_path
        yield f"## {path}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
        if isinstance(command, click.Group):
            for below in command.list_commands(context):
                found = command.get_command(context, below)
                if found is not None and not found.hidden:
                    yield from sections(found, below, context)

    return "# Command line\n\n" + "\n".join(sections(typer.main.get_command(main), "fedpress", None))


def regular_package(folder: Path) -> Path:
    """A copy of the sources in which each folder has an `__init__.py`: griffe passes over those without one."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / "fedpress" / part, ignore=shutil.ignore_patterns("__pycache__"))
    if FACE.exists():
        shutil.copy(FACE, folder / "fedpress")
    for inner in [folder / "fedpress", *folder.glob("fedpress/**/")]:
        (inner / "__init__.py").touch()
    return folder


@event_priority(100)  # before mkdocstrings reads its own
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages to the navigation, and say where the sources are."""
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(regular_package(Path(SOURCES.name)))]
    (reference,) = [entry["Reference"] for entry in config.nav or [] if "Reference" in entry]
    reference.append(COMMANDS)
    api: dict[str, list[dict[str, str]]] = {part: [] for part in PARTS}
    for package, _ in packages():
        part, _, rest = package.partition(".")
        api[part].append({rest or part: f"reference/api/{package}.md"})
    face = [{"fedpress": "reference/api/fedpress.md"}] if FACE.exists() else []
    reference.append({"API": [*face, *({part: pages} for part, pages in api.items())]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages themselves."""
    files.append(File.generated(config, COMMANDS, content=command_page()))
    if FACE.exists():
        files.append(File.generated(config, "reference/api/fedpress.md", content=face_page()))
    for package, modules in packages():
        content = api_page(package, modules)
        files.append(File.generated(config, f"reference/api/{package}.md", content=content))
    return files
