"""ONNX: the same answers without torch, nearly the same in int8, and nothing read but the bytes."""

import numpy as np
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fedpress.compression.models.bundles import onnx_export, onnx_runtime, reader, writer  # noqa: E402
from fedpress.compression.models.quantization import quantization_aware, quantize  # noqa: E402
from fedpress.compression.models.reproducible import reproducible  # noqa: E402
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
    return onnx_export.quantize_static(exported, DATA.proxy.inputs)


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
    assert onnx_export.quantize_static(exported, DATA.proxy.inputs) == quantized


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
        onnx_export.quantize_static(exported, DATA.proxy.inputs[:0])


class Strange(nn.Module):
    """A layer without a counterpart in ONNX."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(inputs)


def test_a_layer_without_a_counterpart_is_named() -> None:
    with pytest.raises(onnx_runtime.OnnxError, match="bessel"):
        onnx_export.export(Strange(), torch.zeros(1, 3))
