"""The download file: it opens to what was saved, each fault has its error, and no flipped bit gets through."""

import hashlib

import numpy as np
import pytest
import torch
from tests.compression.models.bundles.samples import (
    DATA,
    EXAMPLE,
    KEY,
    SHAPES,
    STUDENT,
    Images,
    Line,
    forged,
    manifest,
    saved,
    student,
)
from torch import nn

from fedpress.compression.models.bundles import errors, reader, weight_coding, writer
from fedpress.compression.models.pruning import structural, token_rows
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.task import Task


def test_a_bundle_opens_to_the_quantized_student() -> None:
    opened = reader.open_bundle(DATA)
    inputs = torch.randn(5, 1, 8, 8)
    generator = torch.random.get_rng_state()

    rebuilt = writer.rebuild(opened, Images())

    assert torch.equal(generator, torch.random.get_rng_state())
    assert torch.equal(rebuilt(inputs), quantize.quantized_copy(STUDENT).eval()(inputs))
    assert opened.manifest.parameters == structural.parameters_of(STUDENT) == structural.parameters_of(rebuilt)
    assert (opened.manifest.tier, opened.manifest.version) == ("phone", 3)
    assert opened.manifest.metrics == {"validation_accuracy": 0.9}
    assert (opened.size, opened.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert (opened.manifest.input_shape, opened.manifest.output_shape) == ((1, 8, 8), (10,))
    assert (opened.format, opened.onnx, opened.signed) == (2, b"to run", True)
    assert opened.manifest.schemes["0.weight"] == "int8 by channel" and opened.forms["0.weight"] == "packed"
    assert opened.manifest.schemes["1.num_batches_tracked"] == "int64" and opened.forms["7.bias"] == "float16"


def test_the_same_student_gives_the_same_bytes() -> None:
    assert saved(student(), private_key=KEY, onnx=b"to run") == DATA


def test_saving_leaves_the_student_as_it_was() -> None:
    model = student().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("settings", [Quantization(), Quantization(bits=4, group_size=9), Quantization(bits=2)])
def test_the_largest_size_holds_for_weights_that_do_not_compress(settings: Quantization) -> None:
    model = student()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)  # codes of equal frequency: no entropy code shortens them
    most = writer.largest_bytes(STUDENT, EXAMPLE, settings)
    assert most - 3 * writer.ROOM_BYTES < len(saved(model, settings)) <= most


def test_the_largest_size_of_a_sparse_student_holds() -> None:
    settings = Quantization(bits=4, sparsity=0.8)
    assert len(saved(STUDENT, settings)) <= writer.largest_bytes(STUDENT, EXAMPLE, settings)
    assert writer.largest_bytes(STUDENT, EXAMPLE, settings) < writer.largest_bytes(STUDENT, EXAMPLE)


def test_fewer_bits_make_a_smaller_file() -> None:
    sizes = [len(saved(STUDENT, Quantization(bits=bits))) for bits in range(8, 1, -1)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.7 * sizes[0]


def reshaped(name: str, *shape: int) -> bytes:
    """The bundle with one tensor of another shape, in manifest and weights alike."""
    tensors = quantize.quantize(STUDENT)
    tensor = tensors[name]
    if isinstance(tensor, Quantized):
        tensors[name] = Quantized(np.ones(shape, np.int8), np.ones((shape[0], 1), np.float32))
    else:
        tensors[name] = np.zeros(shape, tensor.dtype)
    return forged(manifest(shapes=SHAPES | {name: shape}), weight_coding.pack(tensors)[0])


class Other(Images):
    """The same name, another model."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("data", "task", "message"),
    [
        (DATA, Line(), "of task 'images', expected 'line'"),
        (DATA, Other(), "no shape for|no tensor"),
        (forged(manifest(input_dtype="complex64")), Images(), "expected float32, float64, int64, int32"),
        (forged(manifest(input_shape=[1, 8, 2**30])), Images(), "16,777,216"),
        (forged(manifest(input_shape=[3, 8, 8])), Images(), "does not fit the model"),
        (forged(manifest(output_shape=[11])), Images(), r"answers \(10,\), the manifest says \(11,\)"),
        (reshaped("7.weight", 10, 11), Images(), "does not fit the model"),  # the layer before has 10 neurons
        (reshaped("7.weight", 10, 2000), Images(), "at most the model's"),
        (reshaped("7.bias", 9), Images(), r"bias \(9,\) does not fit weight"),
        (forged(manifest(architecture="deep")), Images(), "has no student architecture 'deep', it has none"),
        (forged(manifest(task="line", architecture="wide")), Line(), "'wide', it has deep"),
        (forged(manifest(task="line", architecture="deep")), Line(), "does not fit the model"),
    ],
)
def test_a_whole_bundle_for_something_else_does_not_fit(data: bytes, task: Task, message: str) -> None:
    opened = reader.open_bundle(data)
    with pytest.raises(errors.DoesNotFit, match=message):
        writer.rebuild(opened, task)


def test_a_student_of_a_named_architecture_is_rebuilt() -> None:
    model = Line().students()["deep"]()
    tensors = quantize.quantize(model)
    made = {"task": "line", "tier": "phone", "version": 0, "metrics": {}}
    data = writer.save(model, tensors, torch.zeros(1, 2), **made, architecture="deep")  # type: ignore[arg-type]
    rebuilt = writer.rebuild(reader.open_bundle(data), Line())
    inputs = torch.randn(5, 2)
    assert torch.equal(rebuilt(inputs), quantize.applied(model, tensors)(inputs))


class Texts(Line):
    """Ids in, classes out: heads by number in the code, and an embedding."""

    name = "texts"

    def model(self) -> nn.Module:
        return TextNetwork()


class TextNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size, self.words = 4, 4, nn.Embedding(300, 16)
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        n, length = ids.shape
        x = self.words(ids)
        query, key, value = self.qkv(x).view(n, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, -1))
        answer: torch.Tensor = self.head(x.mean(1))
        return answer


def test_numbers_and_the_vocabulary_come_with_the_bundle_and_the_graph() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (6, 5))
    model = structural.keep_fraction(token_rows.narrowed(TextNetwork(), ids).model, ids[:1], 0.5).eval()
    tensors = quantize.quantize(model)
    data = writer.save(model, tensors, ids[:1], task="texts", tier="phone", version=0, metrics={})
    opened = reader.open_bundle(data)
    assert opened.manifest.sizes == {"heads": 2}
    rebuilt, others = writer.rebuild(opened, Texts()), torch.randint(0, 300, (6, 5))
    assert rebuilt.heads == 2 and rebuilt.words.weight.shape[0] == len(ids.unique())
    assert torch.equal(rebuilt(others), quantize.applied(model, tensors)(others))
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from fedpress.compression.models.bundles import onnx_export

    onnx_export.export(model, others)  # compares the graph's answers with the model's


@pytest.mark.parametrize("sizes", [{"heads": 9}, {"forward": 1}, {"qkv.in_features": 0}])
def test_numbers_that_the_model_does_not_have_do_not_fit(sizes: dict[str, int]) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (6, 5))
    model = TextNetwork().eval()
    data = writer.save(model, quantize.quantize(model), ids[:1], task="texts", tier="phone", version=0, metrics={})
    opened = reader.open_bundle(data)
    changed = opened._replace(manifest=opened.manifest.model_copy(update={"sizes": sizes}))
    with pytest.raises(errors.DoesNotFit, match="expected a whole number of a layer"):
        writer.rebuild(changed, Texts())
