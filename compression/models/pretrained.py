"""Pretrained weights: a safetensors file, or a folder of them as Hugging Face's libraries write it.

A tensor of a file belongs to the tensor of the model that has the same name, by one rule:

1. Words that peft and torch.compile put into names are left out on both sides (`plain_name`): a model with adapters,
   or with compiled parts, has the names that it had before.
2. The rest is equal but for one prefix, of the model's names or of the file's: that by which most names agree. So the
   file of an encoder fills a classifier that has it as its part `encoder`, and the file of a classifier its encoder.
   Where two parts of a model agree equally well, as two towers do, both are filled. Where two parts of a file do, it is
   not known which is meant, and nothing is guessed.

>>> plain_name("base_model.model.encoder.query.base_layer.weight"), plain_name("encoder.query.lora_A.default.weight")
('encoder.query.weight', 'encoder.query.lora_A.weight')
>>> matches(["encoder.word.weight", "head.weight"], ["word.weight", "pooler.weight"])
{'encoder.word.weight': 'word.weight'}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedpress.compression import files
from fedpress.compression.models import architecture
from fedpress.compression.safetensors_files import WeightsError, few, files_of
from fedpress.compression.tensors import layout

_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)"
    r"(?:base_model\.model|base_layer|original_module|token_adapter|modules_to_save\.[^.]+|default|_orig_mod)\."
)

_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip file, as torch.save and numpy.savez write them",
    b"\x80": "a pickle, as torch.save once wrote them",
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "the pointer of a file in Git LFS, whose content was not fetched (`git lfs pull`)",
}
"""First bytes of a file -> what it is."""

_SHOWN = 5
"""Names that an error lists."""


class Weights(Mapping[str, Tensor]):
    """Tensors of a file or folder by name, each read from the disk when it is asked for.

    Args:
        path: As of `safetensors_files.files_of`.

    Attributes:
        path: As given.

    Raises:
        WeightsError: There is no such file, it is of another format or damaged, a shard is missing, or two files hold
            a tensor of the same name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Any] = {}
        for file in files_of(path):
            handle = _open(file)
            for name in handle.keys():  # noqa: SIM118 - it is no mapping
                if name in self._files:
                    raise WeightsError(f"{path}: two of its files hold a tensor {name!r}; expected one model")
                self._files[name] = handle

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _open(file: Path) -> Any:
    try:
        with files.open_regular(file) as opened:
            start = opened.read(32)
        header = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= file.stat().st_size
        other = next((what for mark, what in _OTHER_FORMATS.items() if start.startswith(mark)), None)
        if other and not header:
            raise WeightsError(
                f"{file} is {other}; expected a safetensors file. Pickles can run any code, so none is loaded"
                ' here. To convert a file that you trust: safetensors.torch.save_file(torch.load("FILE.pt",'
                ' weights_only=True), "FILE.safetensors")'
            )
        return safetensors.safe_open(file, "pt")
    except OSError as error:
        raise WeightsError(f"cannot read {file}: {error.strerror or error}") from None
    except (SafetensorError, KeyError) as error:
        raise WeightsError(f"{file} is no safetensors file, or damaged: {error}") from None


def plain_name(name: str) -> str:
    """Return the name of a tensor without the words that peft and torch.compile put into it."""
    return _WRAPPERS.sub("", name)


def matches(wanted: Iterable[str], present: Iterable[str]) -> dict[str, str]:
    """Return the name in a file for each name in a model that has one, by the module's rule.

    Args:
        wanted: Names of the model's tensors.
        present: Names of the file's tensors.

    Raises:
        WeightsError: Several of the file's tensors may be meant by one of the model's.
    """
    wanted, present = list(wanted), list(present)
    if set(present).issuperset(wanted):
        return {name: name for name in wanted}
    plain: dict[str, list[str]] = {}  # of several adapters, or of a layer beside its trained copy, there are two
    for name in present:
        plain.setdefault(plain_name(name), []).append(name)
    of_model = {name: plain_name(name) for name in wanted}
    in_model = set(of_model.values())
    longer: Counter[str] = Counter(  # prefixes by which the model's names are longer; "": the names are equal
        prefix for name in in_model for prefix, rest in _cuts(name) if rest in plain
    )
    shorter: Counter[str] = Counter(
        prefix for name in plain for prefix, rest in _cuts(name) if prefix and rest in in_model
    )
    most = max((*longer.values(), *shorter.values()), default=0)
    found: dict[str, str] = {}
    for name, short in of_model.items():
        by = [plain[short.removeprefix(p)] for p, n in longer.items() if n == most and _is_cut(short, p, plain)]
        by += [plain[p + short] for p, n in shorter.items() if n == most and p + short in plain]
        sources = list(dict.fromkeys(source for sources in by for source in sources))
        if name in sources:
            sources = [name]
        if len(sources) > 1:
            raise WeightsError(
                f"{name!r} may be {' or '.join(map(repr, sources[:_SHOWN]))}: the file has several parts that fit;"
                " save the one that is meant alone, or with the model's own names"
            )
        if sources:
            found[name] = sources[0]
    return found


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Yield each way to cut a dotted name into a prefix, which may be empty and else ends with a dot, and the rest."""
    position = 0
    while True:
        yield name[:position], name[position:]
        position = name.find(".", position) + 1
        if not position:
            return


def _is_cut(name: str, prefix: str, plain: Mapping[str, list[str]]) -> bool:
    return name.startswith(prefix) and name[len(prefix) :] in plain


class Filled(NamedTuple):
    """Names of a model's and a file's tensors after `fill`.

    Attributes:
        filled: Of the model, that have the file's values.
        left: Of the model, that the file lacks, and that are as they were.
        unused: Of the file, that the model has no place for.
    """

    filled: list[str]
    left: list[str]
    unused: list[str]


def fill(model: nn.Module, weights: Weights) -> Filled:
    """Copy pretrained weights and buffers into the tensors of a model that they belong to.

    Floats of another precision are converted. Of tied tensors the file may hold one.

    Args:
        model: Changed in place.
        weights: The pretrained weights.

    Raises:
        WeightsError: None of the names belong to the model, or a tensor has another shape, or is no float where the
            model's is.
    """
    state = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)  # an extra state is not
    }
    names = matches(state, weights)
    names |= _of_trained_copies(state, names)
    if not names:
        raise WeightsError(
            f"{weights.path} has no tensor of this model: it holds {few(list(weights)) or 'nothing'}, the model"
            f" {few(list(state))}"
        )
    for name, source in names.items():
        if problem := difference(source, weights[source], state[name]):
            raise WeightsError(f"{weights.path} is of another model: {problem}")
    with torch.no_grad():
        for name, source in names.items():
            state[name].copy_(weights[source])
    ids = {id(state[name]) for name in names}
    left = [name for name, tensor in state.items() if id(tensor) not in ids]
    used = set(names.values())
    return Filled(list(names), left, [name for name in weights if name not in used])


def _of_trained_copies(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, str]:
    """Return the sources of trained copies of a layer (peft's modules_to_save) whose original is tied to another one.

    Args:
        state: Tensors of the model.
        names: Name in the file by name in the model.
    """
    by_tensor = {id(state[name]): source for name, source in names.items()}
    of_original = {plain_name(name): by_tensor[id(tensor)] for name, tensor in state.items() if id(tensor) in by_tensor}
    return {
        name: of_original[plain_name(name)]
        for name, tensor in state.items()
        if id(tensor) not in by_tensor and plain_name(name) in of_original
    }


def shared(model: nn.Module, weights: Weights) -> dict[str, str]:
    """Return the name in the files of each tensor of a model that is not trained and is there, to the bit.

    Law: what is returned does not depend on the values of what is trained. Of tied tensors the first name counts.

    Args:
        model: The model, with adapters as they were trained.
        weights: The pretrained weights.
    """
    state = architecture.tensors(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        name: source
        for name, source in matches(state, weights).items()
        if name not in trained and _same(state[name], weights[source])
    }


def _same(tensor: Tensor, given: Tensor) -> bool:
    """Return whether a tensor is that of a file, and so is its form in a bundle, where floats are float32."""
    exact = tensor.dtype == torch.float32 if tensor.is_floating_point() else tensor.dtype == given.dtype
    fits = tensor.shape == given.shape and given.is_floating_point() == tensor.is_floating_point()
    return exact and fits and torch.equal(tensor.cpu(), given.to(tensor.dtype))


def difference(name: str, given: Tensor, expected: Tensor) -> str:
    """Return what keeps a tensor of a file from being one of the model's; empty: nothing.

    Args:
        name: Its name in the file.
        given: The file's tensor.
        expected: The model's tensor.
    """
    if given.shape != expected.shape:
        rank = layout.rank_hint(name, tuple(given.shape), tuple(expected.shape))
        return f"{name!r} has shape {tuple(given.shape)}, the model's has {tuple(expected.shape)}{rank}"
    if given.is_floating_point() != expected.is_floating_point():
        kinds = (str(tensor.dtype).removeprefix("torch.") for tensor in (given, expected))
        return "{!r} is {}, the model's is {}".format(name, *kinds)
    return ""
