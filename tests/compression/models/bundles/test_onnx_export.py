"""ONNX: the same answers without torch, nearly the same in int8, and nothing read but the bytes."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.apps import texts  # noqa: E402

from fedpress.compression.models.bundles import onnx_export, onnx_quantization, onnx_runtime, reader, writer  # noqa: E402
from fedpress.compression.models.quantization import quantization_aware, quantize  # noqa: E402
from fedpress.compression.models.reproducible import reproducible  # noqa: E402
from fedpress.compression.models.stored import Collated  # noqa: E402
from fedpress.compression.models.task import Examples, Splits, Task  # noqa: E402
from fedpress.simulations.tasks.digits import Digits  # noqa: E402

DATA = Digits().data()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A digits network, trained a little, so that answers mean something."""
    with reproducible(0) as generator:
        model = Digits().model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(4):
            for batch in torch.split(torch.randperm(len(DATA.train.targets), generator=generator), 20):
                optimizer.zero_grad()
                Digits().loss(model(DATA.train.inputs[batch]), DATA.train.targets[batch]).backward()
                optimizer.step()
    return model.train()


@pytest.fixture(scope="module")
def exported(model: nn.Module) -> bytes:
    return onnx_export.export(model, DATA.proxy.inputs)


@pytest.fixture(scope="module")
def quantized(exported: bytes) -> bytes:
    return onnx_quantization.quantize_static(exported, DATA.proxy.inputs)


def test_the_answers_are_the_models_for_any_number_of_inputs(model: nn.Module, exported: bytes) -> None:
    assert model.training  # as it was
    run = onnx_runtime.runner(exported)
    for inputs in (DATA.test.inputs[:1], DATA.test.inputs[:7]):
        torch.testing.assert_close(
            torch.from_numpy(run(inputs.numpy())), model.eval()(inputs).detach(), rtol=1e-4, atol=1e-5
        )
    model.train()


def test_int8_is_a_quarter_and_answers_nearly_alike(model: nn.Module, exported: bytes, quantized: bytes) -> None:
    assert len(quantized) < 0.3 * len(exported)
    inputs, targets = DATA.test
    run = onnx_runtime.runner(quantized)
    answers = run(inputs.numpy()).argmax(axis=1)
    expected = model(inputs).argmax(dim=1).numpy()
    assert (answers == expected).mean() > 0.97 and (answers == targets.numpy()).mean() > 0.85
    kinds = {node.op_type for node in onnx.load_from_string(quantized).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    scales = [
        one for one in onnx.load_from_string(quantized).graph.initializer if one.name.endswith("_scale") and one.dims
    ]
    assert any(one.dims[0] > 1 for one in scales)  # per channel


def test_the_same_model_gives_the_same_bytes(model: nn.Module, exported: bytes, quantized: bytes) -> None:
    assert onnx_export.export(model, DATA.proxy.inputs) == exported
    assert onnx_quantization.quantize_static(exported, DATA.proxy.inputs) == quantized


def test_a_prepared_student_is_exported_with_its_rounded_weights(model: nn.Module) -> None:
    learner = quantization_aware.prepare(model, 4)
    inputs = DATA.test.inputs[:5]
    run = onnx_runtime.runner(onnx_export.export(learner, inputs))
    np.testing.assert_allclose(run(inputs.numpy()), learner(inputs).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_bundle_holds_both(model: nn.Module, quantized: bytes) -> None:
    tensors = quantize.quantize(model)
    made = {"task": "digits", "tier": "phone", "version": 1, "metrics": {}}
    data = writer.save(model, tensors, DATA.proxy.inputs, onnx=quantized, **made)  # type: ignore[arg-type]
    opened = reader.open_bundle(data)
    assert opened.onnx == quantized
    inputs = DATA.test.inputs[:200]
    answers = onnx_runtime.runner(opened.onnx)(inputs.numpy()).argmax(axis=1)
    rebuilt = writer.rebuild(opened, Digits())(inputs).argmax(dim=1).numpy()
    assert (answers == rebuilt).mean() > 0.97


def test_without_calibration_inputs_there_is_an_error(exported: bytes) -> None:
    with pytest.raises(ValueError, match="calibration inputs"):
        onnx_quantization.quantize_static(exported, DATA.proxy.inputs[:0])


class Strange(nn.Module):
    """A layer without a counterpart in ONNX."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(inputs)


def test_a_layer_without_a_counterpart_is_named() -> None:
    with pytest.raises(onnx_runtime.OnnxError, match="bessel"):
        onnx_export.export(Strange(), torch.zeros(1, 3))


class Net(nn.Module):
    """Two layers, and between them what a subclass does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())  # type: ignore[no-any-return]


class Numpy(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - torch.from_numpy(x.numpy().mean(axis=1, keepdims=True)))


class Listed(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.tensor(x.tolist()))


class OneByOne(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([super(OneByOne, self).forward(row) for row in x])


class Sized(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).reshape(int(x.shape[0]), -1)


class Branches(Net):
    """Each input takes one of two ways, in a loop that tracing unrolls for the first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        signs = [1.0 if float(row[0]) > 0 else -1.0 for row in x]
        return super().forward(x * torch.tensor(signs)[:, None])


class Squeezed(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[..., None].squeeze()


class Pooled(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + nn.functional.adaptive_avg_pool1d(x[:, None], 3).mean(dim=-1)


class Twice(Net):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return super().forward(x), x


class Dropped(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x))


class Centered(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(dim=0))


class Written(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).reshape(50, -1)


class Raising(Net):
    """What only tracing runs into."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise KeyError("first")
        return super().forward(x)


INPUTS = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
SEQUENCES = INPUTS.reshape(10, 5, 8)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Numpy, r"inputs otherwise than the model, in batches, .*NumPy array.*numpy, int\(x.shape"),
        (Listed, r"answers 17 inputs with \(1, 4\), expected \(17, 4\).*Python list"),
        (OneByOne, r"does not run on 17 inputs at a time"),
        (
            Sized,
            r"(does not run on|answers) 17 inputs.*test_onnx_export.py:\d+: Converting a tensor to a Python integer",
        ),
        (Branches, r"inputs otherwise than the model, in batches"),
        (Squeezed, r"answers 1 inputs with \(4,\), expected \(1, 4\)"),
        (Pooled, r"cannot be exported to ONNX: .*adaptive_avg_pool1d[^%]*leave students.quantize.onnx off$"),
        (Twice, r"returns a tuple, expected one tensor"),
        (Dropped, r"the model itself \(Dropped\) does not answer the same inputs twice alike"),
        (Centered, r"the model itself \(Centered\) .*depend on the other inputs of its batch"),
        (Written, r"runs on a batch of 50 inputs, but not on fewer"),
        (Raising, r"cannot be exported to ONNX: 'first'"),
    ],
)
def test_a_graph_that_answers_otherwise_is_refused(
    model: type[nn.Module], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(onnx_runtime.OnnxError, match=message):
        onnx_export.export(model(), INPUTS)
    assert capfd.readouterr() == ("", "")  # no dump of torch's graph, and no lines of ONNX Runtime


def test_a_single_input_is_enough_to_see_it() -> None:
    for model in (Numpy(), Branches()):
        with pytest.raises(onnx_runtime.OnnxError, match="of 4 inputs otherwise"):
            onnx_export.export(model, INPUTS[:1])


class Tokens(nn.Module):
    """Embeddings and a recurrent layer that is given its first state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.recurrent = nn.Embedding(10, 8), nn.GRU(8, 12, batch_first=True)
        self.last = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(self.embedding(x), torch.zeros(1, x.size(0), 12))
        return self.last(hidden)  # type: ignore[no-any-return]


def weight_normed() -> nn.Module:
    model = Net()
    nn.utils.parametrizations.weight_norm(model.first)
    return model


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Net, INPUTS),
        (lambda: Net().double(), INPUTS.double()),
        (lambda: Net().half(), INPUTS.half()),
        (weight_normed, INPUTS),
        (lambda: nn.Sequential(Net(), nn.BatchNorm1d(4)), INPUTS),
        (Tokens, torch.arange(300).reshape(50, 6) % 10),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), SEQUENCES),
    ],
)
def test_what_can_be_exported_still_is(make: Callable[[], nn.Module], inputs: torch.Tensor) -> None:
    model = make().eval()
    graph = onnx_export.Graph(onnx_export.export(model, inputs))
    with torch.no_grad():
        torch.testing.assert_close(graph(inputs[:3]), model(inputs[:3]), rtol=1e-2, atol=1e-3)
    onnx_export.Graph(onnx_quantization.quantize_static(onnx_export.export(model, inputs), inputs))(inputs[:3])


class Signs(Task):
    """Whether a number is positive, from inputs of which some tests make one far larger than the others."""

    name = "signs"

    def model(self) -> nn.Module:
        return nn.Linear(8, 2)

    def data(self) -> Splits:
        raise NotImplementedError


def test_the_accuracy_is_that_of_the_graph_in_onnx_runtime(model: nn.Module, quantized: bytes) -> None:
    accuracy = onnx_export.require_accuracy(quantized, model, Digits(), DATA.validation)
    answers = onnx_runtime.runner(quantized)(DATA.validation.inputs.numpy()).argmax(axis=1)
    assert accuracy == (answers == DATA.validation.targets.numpy()).mean() > 0.8
    assert model.training  # as it was


def test_activations_that_do_not_fit_8_bits_are_refused() -> None:
    """One input of the model is a thousand times larger than that which decides."""
    model = Signs().model()
    with torch.no_grad():
        model.weight.zero_()  # type: ignore[union-attr]
        model.weight[1, 0], model.bias[:] = 1.0, 0.0  # type: ignore[index, union-attr]
    inputs = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    inputs[:, 1] *= 1_000
    graph = onnx_quantization.quantize_static(onnx_export.export(model, inputs), inputs)
    with pytest.raises(onnx_runtime.OnnxError, match=r"int8 ONNX graph has an accuracy of .* the student of 100.00%"):
        onnx_export.require_accuracy(graph, model, Signs(), Examples(inputs, (inputs[:, 0] > 0).long()))


def test_what_onnx_runtime_cannot_quantize_is_an_error_of_ours(exported: bytes) -> None:
    with pytest.raises(onnx_runtime.OnnxError, match="ONNX Runtime cannot quantize"):
        onnx_quantization.quantize_static(exported, torch.zeros(3, 5))


def test_the_root_logger_stays_as_it_is() -> None:
    """A module of ONNX Runtime's quantizer configures it: each line of a run's log would be on the terminal, too."""
    code = (
        "import logging, torch\n"
        "from fedpress.compression.models.bundles import onnx_export, onnx_quantization\n"
        "inputs = torch.randn(8, 3)\n"
        "onnx_quantization.quantize_static(onnx_export.export(torch.nn.Linear(3, 2), inputs), inputs)\n"
        "root = logging.getLogger()\n"
        "assert root.handlers == [] and root.level == logging.WARNING, (root.handlers, root.level)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", ["lists", "memory"])
@pytest.mark.parametrize(("kind", "output"), [("plain", ["N", 3]), ("places", ["N", 3, "L"])])
def test_tensors_by_name_are_inputs_by_name_of_any_number_and_length(
    source: str, kind: str, output: list[str | int]
) -> None:
    task = texts.Texts(kind, source)
    torch.manual_seed(0)
    model, inputs = task.model().eval(), task.data().train.inputs
    graph = onnx_export.Graph(onnx_export.export(model, inputs))
    described = {each.name: each.shape for each in graph.run.session.get_inputs()}
    assert described == {"ids": ["N", "L"], "mask": ["N", "L"]}
    assert graph.run.session.get_outputs()[0].shape == output
    for count, length in ((1, 1), (1, 7), (5, 3), (2, 31)):
        draw = torch.Generator().manual_seed(count)
        batch = {"ids": torch.randint(1, 40, (count, length), generator=draw), "mask": torch.ones(count, length).long()}
        batch["mask"][0, length // 2 + 1 :] = 0
        with torch.no_grad():
            torch.testing.assert_close(graph(**batch), model(**batch), rtol=1e-4, atol=1e-5)


def test_logits_by_name_stay_so() -> None:
    class Named(texts.Pooled):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, object]:  # type: ignore[override]
            return {"loss": None, "logits": super().forward(ids, mask), "cache": object()}

    inputs = texts.Texts().data().train.inputs
    graph = onnx_export.Graph(onnx_export.export(Named(), inputs))
    batch = inputs.take(torch.tensor([3, 4]))
    found = graph(**batch)
    assert found.logits is found["logits"] and found.logits.shape == (2, 3)


class Unrolled(nn.Module):
    """What tracing unrolls for the length that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = texts.Pooled()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.inner.embedding(ids)
        total = sum(x[:, at] * mask[:, at, None] for at in range(ids.shape[1]))
        return self.inner.head(self.inner.hidden(total))  # type: ignore[no-any-return, arg-type]


def test_a_length_that_is_written_into_the_graph_is_an_error() -> None:
    for source in ("lists", "memory"):
        inputs = texts.Texts("plain", source).data().train.inputs
        with pytest.raises(onnx_runtime.OnnxError, match=r"(does not run on \d+ inputs?, \d+ places long|otherwise)"):
            onnx_export.export(Unrolled(), inputs)


FAMILIES: dict[str, Callable[[Any], Any]] = {
    "bert": lambda t: t.BertForSequenceClassification(t.BertConfig(num_labels=3, **SMALL)),
    "bert tokens": lambda t: t.BertForTokenClassification(t.BertConfig(num_labels=3, **SMALL)),
    "distilbert": lambda t: t.DistilBertForSequenceClassification(
        t.DistilBertConfig(vocab_size=40, n_layers=2, dim=32, n_heads=4, hidden_dim=48, num_labels=3)
    ),
    "gpt2": lambda t: t.GPT2ForSequenceClassification(
        t.GPT2Config(
            vocab_size=40, n_layer=2, n_embd=32, n_head=4, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2
        )
    ),
    "llama": lambda t: t.LlamaForSequenceClassification(
        t.LlamaConfig(num_labels=3, pad_token_id=0, num_key_value_heads=2, **SMALL)
    ),
}
SMALL = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 24,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_faces_models_are_exported_and_agree(family: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra text-models")
    torch.manual_seed(0)
    model = FAMILIES[family](transformers).eval()
    stored = Collated(texts.drawn(30, seed=0)[0], texts.collate)
    exported = onnx_export.export(model, stored)
    graphs = [onnx_export.Graph(exported), onnx_export.Graph(onnx_quantization.quantize_static(exported, stored))]
    for rows in ([4], [0, 1, 2, 3, 4, 5]):
        batch = stored.take(torch.tensor(rows))
        places = batch["attention_mask"].bool() if "tokens" in family else slice(None)
        with torch.no_grad():
            expected = model(**batch).logits[places]
        whole, rounded = (graph(**batch).logits[places] for graph in graphs)
        torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
        assert (rounded - expected).abs().max() < 0.2 * expected.abs().max()
