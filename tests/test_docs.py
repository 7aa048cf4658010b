"""The documents tell the truth: examples run, what they name exists, records are what the pages say.

Links and anchors of the pages below docs/ are checked by `mkdocs build --strict` (`make docs`).
"""

import ast
import csv
import datetime
import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import typer.main
import yaml

from fedpress.simulations.__main__ import main
from fedpress.simulations.deploy import settings
from fedpress.simulations.runs import runner
from fedpress.simulations.scenario import scenario

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TUTORIALS = [ROOT / "docs" / "start" / name for name in ("first-federation.md", "own-data.md")]
RECORDS = sorted(ROOT.glob("records/*.sh"))
SEEDS = sorted(ROOT.glob("records/*.csv"))

FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:\.ci|client|compression|docs|records|server|simulations|tests)/[\w./-]*)`")


class Block(NamedTuple):
    """A fenced block: its language, the file that it is to become, if it says one, and its text."""

    language: str
    title: str
    text: str


def fenced(document: Path) -> list[Block]:
    """All fenced blocks of a document."""
    return [Block(*found) for found in FENCE.findall(document.read_text(encoding="utf-8"))]


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [block.text for block in fenced(document) if block.language == language]


def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def is_part_of_a_file(block: str) -> bool:
    """Whether a block shows a part of a file: its first line names the file."""
    return re.match(r"# [\w/]+\.py\n", block) is not None


def is_script(block: str) -> bool:
    """Whether a block is to be run as a file, since it starts processes."""
    return '__name__ == "__main__"' in block


def python(document: Path) -> list[str]:
    """The Python blocks that run by themselves: neither a file of a tutorial nor a part of one of ours."""
    named = [block for block in fenced(document) if block.language == "python" and not block.title]
    return [block.text for block in named if not is_part_of_a_file(block.text)]


def examples(document: Path) -> list[str]:
    """Those that need no file of their own."""
    return [block for block in python(document) if not is_script(block)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(paths: list[Path], **marks: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("document", paths, ids=name_of)


def anchors(document: Path) -> set[str]:
    """The names under which the headings can be linked to, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@each(sorted(ROOT.glob("*.md")))
def test_links_from_outside_the_site_lead_somewhere(document: Path) -> None:
    targets = [target for target in LINK.findall(prose(document)) if not re.match(r"https?://|mailto:", target)]
    broken = []
    for target in targets:
        name, _, anchor = target.partition("#")
        file = (document.parent / name) if name else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert targets and broken == []


def test_named_files_exist() -> None:
    named = {(name_of(document), name) for document in DOCUMENTS for name in FILE.findall(prose(document))}
    assert len(named) > 80
    assert [place for place in sorted(named) if not (ROOT / place[1]).exists()] == []


def test_the_house_says_where_things_are() -> None:
    """Each of the seven questions is answered by a folder, and each file to begin with is in it."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("## Seven questions")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| `([\w/]+)` \| ([^|]+) \|$", section, re.MULTILINE)
    assert len(rows) == 7
    files = [ROOT / folder / file for _, folder, answer in rows for file in re.findall(r"`(\w+\.py)`", answer)]
    assert len(files) > 7 and [file for file in files if not file.is_file()] == []


# ---- names that pages use ------------------------------------------------------------------------------------------

FOREIGN = set(
    """
    CommunicationTracker
    ArrayRecord BlockOpen ClientApp ConfigRecord Context Convolution FedAvg GridSearch LSTM Linear Optimizer Result
    FedMedian FedXgbBagging FedXgbCyclic LocalDpMod RuntimeWarning SGD SecAggPlusWorkflow ServerApp Strategy
    arrays_size_mod get_peft_model_state_dict message_size_mod server_fn
    CommunicationTracker Conv1D MatMulNBits sdpa set_adapter target_parameters trainable_token_indices
    argpartition attention_mask fuzz mount niid output_attentions run_simulation secaggplus_mod timeit token_type_ids
    """.split()
)
"""Names in pages that are those of Flower, torch, Python, a page's own example, or of a shell."""

SUFFIXES = {"bin", "crt", "csv", "fp", "fpb", "html", "json", "key", "log", "md", "npy", "npz", "parquet", "pem", "png"}
SUFFIXES |= {"proto", "py", "pub", "safetensors", "svg", "toml", "txt", "yaml", "yml"}


PARTS = ("client", "compression", "server", "simulations")


class Tree(NamedTuple):
    """What the sources declare, read without importing them.

    Attributes:
        modules: Names at the top of each module, by its dotted name below `fedpress`.
        members: Attributes and methods of each class, by its name; classes of one name are taken together.
        arguments: Arguments of each function and class, by its name; those of classes of one name together. Empty where
            it takes any.
        words: Every identifier of the sources, and every word of a short string, such as an option's name.
    """

    modules: dict[str, set[str]]
    members: dict[str, set[str]]
    arguments: dict[str, set[str]]
    words: set[str]


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    args = function.args
    return {argument.arg for argument in [*args.posonlyargs, *args.args, *args.kwonlyargs]} | (
        {"**"} if args.kwarg else set()
    )


@cache
def tree() -> Tree:
    """Read the sources once; a class has what its bases have."""
    found = Tree({}, {}, {}, set())
    bases: dict[str, set[str]] = {}
    paths = [path for part in PARTS for path in ROOT.glob(f"{part}/**/*.py")]
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        top = found.modules.setdefault(".".join(parts[:-1] if parts[-1] == "__init__" else parts), set())
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in module.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                top.add(node.name)
            elif isinstance(node, ast.Assign):
                top |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                top.add(node.target.id)
        if path.name == "renamed.py":
            continue  # the words of before
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef):
                found.arguments.setdefault(node.name, set()).update(_arguments(node))
            elif isinstance(node, ast.ClassDef):
                bases.setdefault(node.name, set()).update(ast.unparse(base).rpartition(".")[2] for base in node.bases)
                members = found.members.setdefault(node.name, set())
                arguments = found.arguments.setdefault(node.name, set())
                for inner in ast.walk(node):
                    if isinstance(inner, ast.FunctionDef):
                        members.add(inner.name)
                        arguments |= _arguments(inner) if inner.name == "__init__" else set()
                    elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                        members.add(inner.target.id)
                        arguments.add(inner.target.id)
                    elif isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "self":
                        members.add(inner.attr)
            for attribute in ("name", "id", "attr", "arg"):
                if isinstance(word := getattr(node, attribute, None), str):
                    found.words.add(word)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200:
                found.words.update(re.findall(r"\w+", node.value))
        found.words.update(parts)
    for _ in range(5):  # as deep as classes inherit
        for name, above in bases.items():
            for base in above & found.members.keys():
                found.members[name] |= found.members[base]
                found.arguments[name] |= found.arguments[base]
    return found


@cache
def keys_of_a_scenario() -> set[str]:
    """All paths of keys, such as `students.quantize.bits`, and what they end with."""
    schema = scenario.Scenario.model_json_schema()

    def paths(node: dict[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        for name, below in node.get("properties", {}).items():
            yield (*prefix, name)
            yield from paths(below, (*prefix, name))
        for below in [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", []), node.get("items")]:
            yield from paths(below, prefix) if below else ()

    return {".".join(path[start:]) for path in paths(schema, ()) for start in range(len(path))}


def is_known(name: str) -> bool:
    """Whether a dotted name is of a module, a class or a scenario; names that are not ours always are."""
    parts = name.removeprefix("fedpress.").split(".")
    if (
        parts[-1] in SUFFIXES
        or parts[:2] == ["hub", "v2"]
        or name in keys_of_a_scenario()
        or (parts[0] == "task" and len(parts) == 2)
    ):
        return True
    sections = {key.partition(".")[0] for key in keys_of_a_scenario() if "." in key}
    ours = parts[0] in sections or (parts[0] in PARTS and len(parts) > 1)
    for owner in (parts[0], parts[0].title().replace("_", "")):  # a class, or a variable that is named after it
        if owner in tree().members and len(parts) > 1:
            ours = True
            if parts[1] in tree().members[owner]:
                return True
    for module, top in tree().modules.items():
        for length in range(1, len(parts) + 1):
            if f".{module}".endswith("." + ".".join(parts[:length])):
                rest = parts[length:]
                ours = True
                if not rest or (rest[0] in top and (len(rest) == 1 or rest[1] in tree().members.get(rest[0], ()))):
                    return True
    return not ours


def unknown_names(code: str) -> Iterator[str]:
    """What a piece of code in a page names that does not exist."""
    for name in re.findall(r"(?<![\w./-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?![\w/*-])", code):
        if not is_known(name):
            yield name
    for called, given in re.findall(r"(?<![\w.])([\w.]+)\(([^()]*)", code):
        arguments = tree().arguments.get(called.rpartition(".")[2])
        for argument in re.findall(r"(?:^|[ ,])(\w+)=", given):
            if arguments is not None and argument not in arguments and "**" not in arguments:
                yield f"{called}({argument}=)"
    single = re.fullmatch(r"(?![A-Z]+$|fedpress_hub_)([A-Za-z_]\w{2,})(?:\(.*)?", code)
    for word in {*([single[1]] if single else []), *re.findall(r"(?<![\w.])[A-Z][a-z]+[A-Z]\w*", code)}:
        if word not in tree().words | FOREIGN:
            yield word


def test_the_check_of_names_finds_what_is_gone() -> None:
    """Names of before the rebuilding, each of another kind."""
    gone = {
        "server.optimize.Optimizer": "a module",
        "versions.Shipment": "a name of a module",
        "Encoder.follow": "a member of a class",
        "GlobalModel.move": "a method",
        "training.proximal": "a key",
        "SparseFed(prediction=0.5)": "an argument",
        "StudentChain": "a class",
        "settle(state, accepted)": "a function",
    }
    assert [code for code in gone if not list(unknown_names(code))] == []
    here = [
        "Encoder.remap",
        "GlobalModel.apply_update",
        "training.proximal_mu",
        "Downlink(prediction=0.5)",
        "encoder.sparse",
    ]
    assert [code for code in here if list(unknown_names(code))] == []


@each([path for path in DOCUMENTS if path.name not in ("scenario.md", "CHANGELOG.md")])
def test_named_code_exists(document: Path) -> None:
    """Modules, classes, functions, arguments and keys between backticks; the two pages left out name old keys."""
    inline = re.findall(r"`([^`\n]+)`", prose(document))
    assert [(name, code) for code in inline for name in unknown_names(code)] == []


def test_named_sources_exist() -> None:
    """A file that is named without its folder is somewhere; two are what a module must not be called."""
    tutorials = {block.title for document in DOCUMENTS for block in fenced(document)}
    shown = {
        first for document in DOCUMENTS for first in re.findall(r"^# (\w+\.py)$", document.read_text(), re.MULTILINE)
    }
    sources = {
        path.name
        for part in ("client", "compression", "server", "simulations", "tests", "records")
        for path in ROOT.glob(f"{part}/**/*.py")
    }
    named = {(name_of(d), name) for d in DOCUMENTS for name in re.findall(r"`(\w+\.py)`", prose(d))}
    assert len(named) > 15
    known = sources | tutorials | shown | {"select.py", "types.py"}
    assert {place for place in named if place[1] not in known} == set()


def test_pages_that_the_code_names_exist() -> None:
    sources = [
        path
        for part in ("client", "compression", "server", "simulations", "tests")
        for path in ROOT.glob(f"{part}/**/*")
    ]
    sources = [path for path in [*sources, ROOT / "Makefile"] if path.suffix in (".py", ".yaml", ".html", ".proto", "")]
    named = {
        (name_of(path), page)
        for path in sources
        if path.is_file() and path != Path(__file__) and "golden" not in path.parts and "corpus" not in path.parts
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert [place for place in sorted(named) if not (ROOT / place[1]).exists()] == []


def test_concepts_are_short() -> None:
    pages = [*sorted(ROOT.glob("docs/concepts/*.md")), ROOT / "docs" / "architecture.md"]
    assert len(pages) > 10
    assert {
        name_of(page): len(page.read_text().splitlines()) for page in pages if len(page.read_text().splitlines()) > 150
    } == {}


def test_the_log_is_dated_newest_first() -> None:
    text = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    dates = [datetime.date.fromisoformat(day) for day in re.findall(r"^## (.*)$", text, re.MULTILINE)]
    assert len(dates) > 2 and dates == sorted(set(dates), reverse=True)
    assert text.count("(negative") > 10


def reads_a_run(document: Path) -> bool:
    """Whether the examples read a run folder."""
    return any('"runs/' in example for example in examples(document))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run, of the name that the documents give it."""
    folder = tmp_path_factory.mktemp("documents")
    short = [
        "rounds=2",
        "clients=4",
        "sampling.clients_per_round=4",
        "training.epochs=1",
        "students.tiers=[]",
        "workers=1",
    ]
    runner.simulate(scenario.load("digits", short), folder / "runs" / "sparse-1")
    return folder


WITH_EXAMPLES = [path for path in DOCUMENTS if examples(path)]


def test_pages_have_examples() -> None:
    named = {name_of(path) for path in WITH_EXAMPLES}
    assert named >= {
        "README.md",
        "docs/concepts/error-feedback.md",
        "docs/how-to/flower-app.md",
        "docs/reference/recipes.md",
    }


@pytest.mark.parametrize(
    "document",
    [pytest.param(path, marks=pytest.mark.slow if reads_a_run(path) else ()) for path in WITH_EXAMPLES],
    ids=name_of,
)
def test_python_examples_run(document: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a document run in turn in one namespace; those with prompts must print what they say."""
    if reads_a_run(document):
        monkeypatch.chdir(request.getfixturevalue("runs"))
    namespace: dict[str, Any] = {"__name__": "document"}
    for number, block in enumerate(examples(document), start=1):
        name = f"{document.name}, Python block {number}"
        if ">>> " in block:
            test = doctest.DocTestParser().get_doctest(block, namespace, name, str(document), 0)
            report: list[str] = []
            doctest.DocTestRunner(verbose=False).run(test, out=report.append, clear_globs=False)
            assert not report, "".join(report)
            namespace = test.globs
        else:
            exec(compile(block, name, "exec"), namespace)


SCRIPTS = {block: name_of(document) for document in DOCUMENTS for block in python(document) if is_script(block)}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=SCRIPTS.values())
def test_scripts_run(script: str, tmp_path: Path) -> None:
    """Who copies a script into a file of an empty folder sees the run's figures; two rounds will do here."""
    (tmp_path / "script.py").write_text(re.sub(r"rounds=\d+", "rounds=2", script), encoding="utf-8")
    ended = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^accuracy +\d+\.\d+ ?%", ended.stdout, re.MULTILINE)
    assert list(tmp_path.glob("runs/*/report.html"))


@pytest.mark.long
@pytest.mark.slow
@each(TUTORIALS)
def test_tutorials_lead_where_they_say(document: Path, tmp_path: Path) -> None:
    """Who copies each file and runs each command ends with the accuracy and the files that the page promises."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, run in (("python", ""), ("fedpress", "-m fedpress.simulations ")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {run}"$@"\n')
        (commands / name).chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    printed = ""
    for block in fenced(document):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            ended = subprocess.run(
                ["bash", "-euc", block.text], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
            printed += ended.stdout
    accuracy = re.search(r"^accuracy +(\d+\.\d+) ?%", printed, re.MULTILINE)
    promised = re.search(r"accuracy (\d+\.\d)%|about (\d+) %", document.read_text(encoding="utf-8"))
    assert accuracy and promised
    assert float(accuracy[1]) > float(promised[1] or promised[2]) - 4
    for page in re.findall(r"--out (\S+\.html)|`(runs/\S+\.html)`", document.read_text(encoding="utf-8")):
        assert (folder / (page[0] or page[1])).exists()


YAML_BLOCKS = [(path, number, text) for path in DOCUMENTS for number, text in enumerate(blocks(path, "yaml"), start=1)]


def test_pages_have_scenarios() -> None:
    with_scenarios = {name_of(path) for path, _, text in YAML_BLOCKS if "task" in yaml.safe_load(text)}
    assert with_scenarios >= {"docs/concepts/network.md", "docs/start/own-data.md"}
    assert len(YAML_BLOCKS) >= 7


@pytest.mark.parametrize(
    ("document", "text"),
    [(path, text) for path, _, text in YAML_BLOCKS],
    ids=[f"{name_of(path)}-{number}" for path, number, _ in YAML_BLOCKS],
)
def test_yaml_examples_are_valid(document: Path, text: str, tmp_path: Path) -> None:
    """A whole scenario, a part of one, or settings of a service."""
    block = yaml.safe_load(text)
    file = tmp_path / "example.yaml"
    if document.name == "deploy.md":
        of_client = set(block) <= settings.ClientSettings.model_fields.keys()
        needed = "superlink: 'localhost:9092'\nca: ca.crt\nkey: node.pem" if of_client else "scenario: digits"
        file.write_text(f"{needed}\n{text}", encoding="utf-8")
        kind = settings.ClientSettings if of_client else settings.ServerSettings
        assert settings.load(file, kind).model_fields_set >= set(block)
    else:
        whole = {"task": "digits", "clients": 20, "rounds": 20, "density": 0.01, **block}
        file.write_text(yaml.safe_dump(whole), encoding="utf-8")
        assert scenario.load(file).model_fields_set >= set(block)


def words_after(program: str) -> set[str]:
    """The words that follow a program's name in the documents."""
    shell = "\n".join(block for document in DOCUMENTS for block in blocks(document, "sh"))
    inline = "\n".join(code for document in DOCUMENTS for code in re.findall(r"`([^`\n]+)`", prose(document)))
    return set(re.findall(rf"^(?:[A-Z_]+=\S+ )*{program} ([a-z][a-z-]*)", f"{shell}\n{inline}", re.MULTILINE))


def test_named_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = words_after("make")
    assert {"simulate", "test", "docs"} <= named
    assert named - set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) == set()


def command_lines(shell: str) -> Iterator[list[str]]:
    """The calls of fedpress in a shell block, as words; those that need the shell (`$`) are left out."""
    pending = ""
    for line in shell.splitlines():
        pending += line.removesuffix("\\") if line.endswith("\\") else f"{line}\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:
            continue  # a quotation that goes on in the next line
        if line.endswith("\\"):
            continue
        if words[:1] == ["fedpress"] and "$" not in pending:
            yield words[1:]
        pending = ""


def check_command(words: list[str]) -> None:
    """A call of fedpress names a command, options that it has, and keys that a scenario has."""
    command, context = typer.main.get_command(main), None
    while isinstance(command, click.Group) and words and words[0] != "--help":
        context = click.Context(command, parent=context)
        below = command.get_command(context, words[0])
        assert below is not None, words
        command, words = below, words[1:]
    if isinstance(command, click.Group) or "--help" in words or "--example" in words:
        return
    given, _, _ = command.make_parser(click.Context(command, parent=context)).parse_args(list(words))
    overrides = [*(given.get("overrides") or ()), *(given.get("baseline") or ())]
    named = given.get("scenario") if given.get("scenario") in scenario.names() else "digits"
    if overrides and not given.get("suite"):
        scenario.load(str(named), overrides)


def inline_commands(document: Path) -> list[str]:
    """Calls of fedpress in a sentence, but for those that leave something to the reader, in capitals or dots."""
    named = re.findall(r"`(fedpress [a-z][^`\n]+)`", prose(document))
    return [command for command in named if not re.search(r"\b[A-Z]{2,}\b|\.\.\.", command)]


SHELL_COMMANDS = {
    shlex.join(words): words
    for document in DOCUMENTS
    for block in [*blocks(document, "sh"), *inline_commands(document)]
    for words in command_lines(block)
    if words and words[0].islower()
}


def test_named_commands_exist() -> None:
    named = words_after("fedpress")
    assert {"simulate", "report"} <= named
    assert named <= set(typer.main.get_command(main).list_commands(click.Context(click.Command("fedpress"))))
    assert len(SHELL_COMMANDS) > 60


@pytest.mark.parametrize("words", SHELL_COMMANDS.values(), ids=SHELL_COMMANDS.keys())
def test_commands_of_the_pages_have_their_options(words: list[str]) -> None:
    check_command(words)


def test_each_record_has_a_page() -> None:
    assert len(RECORDS) > 10
    for script in RECORDS:
        head = script.read_text(encoding="utf-8").partition("\nset -eu")[0].replace("\n# ", " ")
        assert re.search(r"bash Headline: .* Page: (docs/\S+\.md)\.", head), script.name
        (page,) = re.findall(r"Page: (docs/\S+\.md)\.", head)
        assert (ROOT / page).exists()
        assert set(re.findall(r"[\w-]+\.csv", head)) == {
            path.name for path in SEEDS if re.match(rf"{script.stem}(-seeds)?$", path.stem)
        }


@pytest.mark.parametrize("script", RECORDS, ids=lambda path: path.stem)
def test_commands_of_records_have_their_options(script: Path, tmp_path: Path) -> None:
    """The script runs as it is, with commands that write down how they are called."""
    calls = tmp_path / "calls"
    for name in ("fedpress", "python"):
        (tmp_path / name).write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"open({str(calls)!r}, 'a').write(json.dumps([{name!r}, *sys.argv[1:]]) + chr(10))\n"
        )
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", str(script)], cwd=ROOT, env=environment, check=True, timeout=60)
    for line in calls.read_text().splitlines():
        program, *words = json.loads(line)
        if program == "fedpress":
            check_command(words)
        elif words[:2] == ["-m", "pytest"]:
            assert (ROOT / words[-1]).exists()
        else:
            source = ROOT / Path(*words[1].removeprefix("fedpress.").split(".")).with_suffix(".py")
            options = [word for word in words[2:] if word.startswith("--")]
            assert words[0] == "-m" and [o for o in options if f'"{o}"' not in source.read_text()] == []


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda path: path.stem)
def test_recorded_accuracies_are_those_of_the_pages(seeds: Path) -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/results/**/*.md"))
    with seeds.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        for column in ("accuracy", "global", "phone", "sensor"):
            value = (row.get(column) or "").replace("+-", "±")
            assert re.search(rf"\b{re.escape(value)}", pages) or not value, row


USE_FORMAT = """
import sys
import numpy as np
from fedpress.compression.encoders import encoder, error_feedback, selection
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values

assert values.__file__.startswith(sys.argv[1]), values.__file__
layout = Layout.of_arrays({"weight": np.zeros(3000, np.float32)})
shared = SideInfo(layout)
drawn = np.random.default_rng(1)
codec = error_feedback.error_feedback(encoder.sparse(selection.top_k(0.1), values.by_name("bfloat16")))
state, sent, asked = codec.init(layout), np.zeros(3000), np.zeros(3000)
for step in range(5):
    update = drawn.normal(size=3000).astype(np.float32)
    asked += update
    payload, _, state = codec.encode(update, state, shared, step)
    state = codec.acknowledge(state, True)
    encoder.decode(payload, shared).add_to(sent)
assert np.allclose(sent + state.residual, asked, atol=1e-5)
extremes = np.array([3.4028235e38, -3.4028235e38, 1e-45, -0.0, 1.00390625], np.float32)
packed = values.by_name("bfloat16").pack(extremes)
unpacked = values.by_name("bfloat16").unpack(packed, 5)
assert np.isfinite(unpacked).all() and unpacked[4] == 1.0 and unpacked[0] == -unpacked[1] > 3.3e38
"""


def test_a_value_format_takes_one_entry_in_one_file(tmp_path: Path) -> None:
    """The block of CONTRIBUTING.md, put into a copy of the codec, is all that a new format needs."""
    (block,) = [text for text in blocks(ROOT / "CONTRIBUTING.md", "python") if text.startswith("# compression/wire")]
    functions, _, formats = block.rpartition("_FORMATS = ")
    copy = tmp_path / "fedpress" / "compression"
    shutil.copytree(ROOT / "compression", copy, ignore=shutil.ignore_patterns("__pycache__", "models"))
    source = (copy / "wire" / "values.py").read_text(encoding="utf-8")
    changed = re.sub(r"^_FORMATS = .*\n", lambda _: f"{functions}_FORMATS = {formats}", source, flags=re.MULTILINE)
    assert changed != source
    (copy / "wire" / "values.py").write_text(changed, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", USE_FORMAT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr


USE_STEP = """
import runpy, sys
import torch
from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.step import Materials, Student
from fedpress.compression.models.students import pipeline
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_students
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario

torch.set_num_threads(1)
chosen = scenario.load(sys.argv[1])
workload = Workload(chosen)
publisher = plan_students.publisher(workload, RunFolder.create(sys.argv[2]))
first = publisher.tiers[0].steps[0]
assert (type(first).__name__, first.limit) == ("DropSimilarFilters", 0.9), first
model = workload.fresh_model()
convolution = next(layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d))
convolution.weight.data[3] = 2 * convolution.weight.data[1]
publisher.check(model)
(published,) = publisher.publish(1, model)
names = ["teacher", "deduplicated", "pruned", "distilled", "quantized"]
assert [stage.name for stage in published.stages] == names, published.stages

sys.path.insert(0, sys.argv[1])
steps = runpy.run_path(sys.argv[1] + "/your_study.py")["steps"]
proxy = workload.task.data().proxy.inputs
materials = Materials(model, workload.task, proxy, None, teachers.of(model), seed=0)
student = steps[0](Student(model), materials)
left = next(layer for layer in student.model.modules() if isinstance(layer, torch.nn.Conv2d)).weight
assert not left[3].any() and torch.equal(left[1], convolution.weight[1]) and convolution.weight[3].any()
assert [type(step).__name__ for step in steps[1:]] == ["PruneToBudget", "Distill", "Quantize"]
"""


@pytest.mark.slow
def test_a_step_for_students_takes_one_file(tmp_path: Path) -> None:
    """The blocks of CONTRIBUTING.md are all that a new step needs: in a scenario by reference, and in a list."""
    python = blocks(ROOT / "CONTRIBUTING.md", "python")
    for name in ("similar_filters.py", "your_study.py"):
        (block,) = [text for text in python if text.startswith(f"# {name}\n")]
        (tmp_path / name).write_text(block, encoding="utf-8")
    (section,) = [text for text in blocks(ROOT / "CONTRIBUTING.md", "yaml") if "similar_filters:" in text]
    short = "task: digits\nclients: 4\nrounds: 1\nsampling: {clients_per_round: 4}\n"
    (tmp_path / "scenario.yaml").write_text(short + section + "  distill: {epochs: 1}\n", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", USE_STEP, str(tmp_path), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
