"""What a user installs: the layout that keeps imports right, and the wheel with its base dependencies alone."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDERS = ("client", "compression", "server", "simulations")
FACE = Path(".pkg", "fedpress")
STUDIES = Path("simulations", "studies")
"""Run from a checkout; not in the wheel."""


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


"""Experiments are run from a checkout, and are in no wheel."""


def tree() -> list[Path]:
    """Every file of the four folders, relative to the root."""
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.is_file()]
    return sorted(file.relative_to(ROOT) for file in files if "__pycache__" not in file.parts)


def test_the_four_folders_have_no_init_file() -> None:
    """Flower puts the root on sys.path, and Python 3.14 has a standard-library package `compression`: a regular
    package of that name at the root would hide it, and `import gzip` would fail. A namespace folder hides nothing."""
    assert [folder for folder in FOLDERS if (ROOT / folder / "__init__.py").exists()] == []


def shipped() -> list[Path]:
    """Those of them that a wheel has."""
    return [file for file in tree() if not file.is_relative_to(STUDIES)]


PACKAGES = sorted(file.parent for file in shipped() if file.name == "__init__.py")


def test_every_folder_of_modules_below_says_what_is_in_it() -> None:
    modules = {file.parent for file in shipped() if file.suffix == ".py" and len(file.parts) > 2}
    assert modules == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_a_package_lists_its_public_modules_and_imports_nothing(package: Path) -> None:
    """`__all__` are the modules that others may import; one that begins with an underscore is the package's own."""
    body = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")).body
    doc, listing = body
    assert isinstance(doc, ast.Expr) and isinstance(listing, ast.Assign)
    below = [
        file.relative_to(package).parts[0] for file in shipped() if package in file.parents and file.suffix == ".py"
    ]
    modules = {name.removesuffix(".py") for name in below if not name.startswith("_")}
    assert ast.literal_eval(listing.value) == sorted(modules)
    text = ast.literal_eval(doc.value)
    unknown = set(re.findall(r"`([a-z_0-9]+)`", text)) - modules
    assert not unknown, f"the docstring names modules that are not there: {unknown}"


def test_no_package_imports_a_private_module_of_another() -> None:
    """A private module is for its package and what is below it."""
    wrong = []
    for file in (file for file in shipped() if file.suffix == ".py"):
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fedpress."):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("fedpress.")]
            else:
                continue
            for name in names:
                parts = name.split(".")
                for place, part in enumerate(parts):
                    module = Path(*parts[1 : place + 1])
                    if part.startswith("_") and (ROOT / module).with_suffix(".py").exists():
                        wrong += [f"{file}: {name}"] if module.parent not in file.parents else []
    assert wrong == []


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    """A script run from inside a folder has that folder first on sys.path: its `types.py` would be everybody's."""
    modules = [file for file in tree() if file.suffix == ".py"]
    names = {str(file): {file.stem, *file.parts[1:-1]} for file in modules}
    assert {file: found for file, parts in names.items() if (found := parts & sys.stdlib_module_names)} == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_links_for_static_tools_lead_to_the_folders(folder: str) -> None:
    for place, up in ((".pkg", "../.."), (".ci/imports", "../../..")):
        link = ROOT / place / "fedpress" / folder
        assert link.is_symlink()
        assert os.readlink(link) == f"{up}/{folder}"  # relative: right in every clone
        assert link.resolve() == (ROOT / folder).resolve()


def test_every_folder_with_files_is_a_listed_package() -> None:
    """setuptools is told the packages by name; one that is not listed is missing from the wheel."""
    folders = {"fedpress." + ".".join(file.parent.parts) for file in shipped()}
    assert {"fedpress", *folders} == set(project()["tool"]["setuptools"]["packages"])


def test_constraints_pin_every_direct_dependency_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        versions[canonicalize_name(pin.name)] = specifier.version
    metadata = project()["project"]
    extras = metadata["optional-dependencies"].values()
    wanted = [Requirement(text) for group in (metadata["dependencies"], *extras) for text in group]
    for requirement in wanted:
        if requirement.name != "fedpress":
            version = versions.get(canonicalize_name(requirement.name))
            assert version is not None, f"constraints.txt does not pin {requirement.name}"
            assert requirement.specifier.contains(version), f"{requirement} does not allow the pinned {version}"


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command that must not see this checkout, and shows its output when it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert not check or result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, built from a copy of this tree."""
    folder = tmp_path_factory.mktemp("build")
    kept = (*FOLDERS, "pyproject.toml", "README.md", "LICENSE")
    (folder / "source").mkdir()
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    shutil.copytree(ROOT / FACE, folder / "source" / FACE, symlinks=True)
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", cwd=folder / "source")
    (found,) = (folder / "dist").glob("*.whl")
    assert len(list((folder / "dist").glob("*.tar.gz"))) == 1
    return found


def installed(folder: Path, what: str) -> Path:
    """Install something into a new virtual environment, and return the folder of its commands."""
    venv.create(folder / "venv")  # without pip: this one's does it, and copying it takes seconds
    commands = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", commands / "python", "--disable-pip-version-check"]
    run(*pip, "install", "-q", "-c", ROOT / "constraints.txt", what, cwd=folder)
    return commands


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a new virtual environment that holds the wheel and its base dependencies."""
    return installed(tmp_path_factory.mktemp("bare"), str(wheel))


@pytest.mark.slow
def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    """The wheel is built from the source distribution, so this holds for both."""
    with zipfile.ZipFile(wheel) as archive:
        held = [name for name in archive.namelist() if name.startswith("fedpress/")]
    face = ["fedpress/__init__.py", "fedpress/py.typed"]
    assert sorted(held) == sorted(face + ["fedpress/" + file.as_posix() for file in shipped()])


@pytest.mark.slow
def test_studies_run_from_an_editable_installation(tmp_path: Path) -> None:
    """They are in no wheel, but a checkout that is installed editable has them: python -m runs them from anywhere."""
    copy = tmp_path / "source"
    copy.mkdir()
    for name in (*FOLDERS, ".pkg", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "-q", "--no-deps", "-e", copy, cwd=tmp_path)
    find = "import importlib.util as u; print(u.find_spec('fedpress.simulations.studies.pruning').origin)"
    found = run(python, "-c", find, cwd=tmp_path).stdout.strip()
    assert Path(found).resolve() == (copy / STUDIES / "pruning.py").resolve()


@pytest.mark.slow
def test_the_base_installation_has_neither_torch_nor_flower(bare: Path) -> None:
    for module in ("torch", "flwr"):
        result = run(bare / "python", "-c", f"import {module}", cwd=bare, check=False)
        assert "ModuleNotFoundError" in result.stderr


@pytest.mark.slow
def test_the_command_says_its_version_and_helps(bare: Path) -> None:
    version = project()["project"]["version"]
    assert version in run(bare / "fedpress", "--version", cwd=bare).stdout
    text = run(bare / "fedpress", "--help", cwd=bare).stdout
    for command in ("simulate", "report", "inspect", "init", "hub", "pull", "run"):
        assert command in text


@pytest.mark.slow
def test_a_command_that_misses_an_extra_names_it(bare: Path, tmp_path: Path) -> None:
    result = run(bare / "fedpress", "simulate", cwd=tmp_path, check=False)
    assert result.returncode != 0
    assert "pip install 'fedpress[simulation] @ file://" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.slow
def test_a_device_that_only_downloads_needs_its_extra_and_nothing_more(bare: Path, wheel: Path, tmp_path: Path) -> None:
    pull = ("pull", "--hub", "127.0.0.1:1", "--tier", "phone", "--retries", "0")
    result = run(bare / "fedpress", *pull, cwd=tmp_path, check=False)
    assert result.returncode == 2 and "pip install 'fedpress[download] @ file://" in result.stderr
    commands = installed(tmp_path, f"{wheel}[download]")
    result = run(commands / "fedpress", *pull, cwd=tmp_path, check=False)
    assert result.returncode == 3 and "no hub at 127.0.0.1:1" in result.stderr and "Traceback" not in result.stderr
    result = run(commands / "fedpress", "hub", ".", "--insecure", cwd=tmp_path, check=False)
    assert result.returncode == 2 and "pip install 'fedpress[hub] @ file://" in result.stderr
    assert run(commands / "python", "-c", "import torch", cwd=tmp_path, check=False).returncode != 0


CODEC = """
import numpy as np, fedpress, sys
update = np.arange(1000, dtype=np.float32)
payload = fedpress.encode(update, density=0.01, values="float32")
assert (fedpress.decode(payload, like=update)[990:] == update[990:]).all()
assert "pydantic" not in sys.modules
open("payload.bin", "wb").write(payload)
print(fedpress.__version__)
"""


@pytest.mark.slow
def test_the_codec_needs_the_base_installation_alone(bare: Path, tmp_path: Path) -> None:
    assert project()["project"]["version"] in run(bare / "python", "-c", CODEC, cwd=tmp_path).stdout
    assert "float32" in run(bare / "fedpress", "inspect", "payload.bin", cwd=tmp_path).stdout
