"""A downloaded student, run without torch on files of inputs, and what is said where that cannot be."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.apps import texts  # noqa: E402

from fedpress.client.download import infer  # noqa: E402
from fedpress.compression.models.bundles import errors, onnx_export, onnx_runtime, reader, writer
from fedpress.compression.models.distillation import teachers  # noqa: E402
from fedpress.compression.models.quantization import quantize  # noqa: E402
from fedpress.compression.models.step import Materials, StageResult, Student  # noqa: E402
from fedpress.compression.models.task import Examples, Splits, Task  # noqa: E402
from fedpress.simulations.__main__ import main  # noqa: E402


def made(model: nn.Module, example: Any, onnx: bytes | None = None, private_key: bytes | None = None) -> bytes:
    return writer.save(
        model, quantize.quantize(model), example, task="t", tier="phone", version=3, metrics={}, onnx=onnx,
        private_key=private_key,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(150, 3, 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, model: nn.Module, inputs: torch.Tensor) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "phone.fpb"
    path.write_bytes(made(model, inputs, onnx_export.export(model, inputs)))
    return path


def test_the_answers_are_the_models(path: Path, model: nn.Module, inputs: torch.Tensor, tmp_path: Path) -> None:
    expected = model(inputs).detach().numpy()
    np.save(tmp_path / "x.npy", inputs.numpy())
    found = infer.answer(path, tmp_path / "x.npy")
    np.testing.assert_allclose(found.outputs, expected, rtol=1e-4, atol=1e-5)
    assert found.classes is not None and (found.classes == expected.argmax(axis=1)).all()
    assert (found.manifest.tier, found.manifest.version) == ("phone", 3)


def test_one_input_and_archives_and_other_floats(path: Path, inputs: torch.Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", inputs[0].numpy())
    np.savez(tmp_path / "a.npz", inputs[:1].numpy())
    np.savez_compressed(tmp_path / "b.npz", input=inputs[:1].numpy(), labels=np.zeros(1))
    np.save(tmp_path / "wide.npy", inputs[:1].double().numpy())
    answers = [infer.answer(path, tmp_path / name).outputs for name in ("one.npy", "a.npz", "b.npz", "wide.npy")]
    assert all(np.array_equal(answers[0], other) for other in answers[1:])


def test_what_is_not_what_the_student_takes(path: Path, inputs: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    for array, said in (
        (inputs[:, :2].numpy(), r"shape \(150, 2, 4\): the student takes \(N, 3, 4\), or \(3, 4\) alone"),
        (inputs[None].numpy(), "the student takes"),
        (np.float32(1), "the student takes"),
        (inputs[:0].numpy(), "holds no inputs"),
        (np.zeros((2, 3, 4), np.uint8), "holds uint8, and the student takes float32: .*pixels of 0 to 255"),
        (np.zeros((2, 3, 4), np.int64), "holds int64"),
        (np.zeros((2, 3, 4), np.complex64), "holds complex64"),
    ):
        np.save(file, array)
        with pytest.raises(infer.InferenceError, match=said):
            infer.answer(path, file)
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)  # a pickle, which must not be opened
    with pytest.raises(infer.InferenceError, match="neither .npy nor .npz with plain numbers"):
        infer.answer(path, file)
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    with pytest.raises(infer.InferenceError, match="the arrays a, b: expected one"):
        infer.answer(path, tmp_path / "two.npz")
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:100])
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("text.npy", "cut.npz", "empty.npy"):
        with pytest.raises(infer.InferenceError, match="neither .npy nor .npz"):
            infer.answer(path, tmp_path / name)
    with pytest.raises(infer.InferenceError, match="cannot read .*none.npy: No such file"):
        infer.answer(path, tmp_path / "none.npy")


def test_whole_numbers_are_converted_only_where_they_fit(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3)).eval()
    tokens = torch.randint(0, 10, (5, 2))
    bundle_path, file = tmp_path / "b.fpb", tmp_path / "x.npy"
    bundle_path.write_bytes(made(model, tokens, onnx_export.export(model, tokens)))
    np.save(file, tokens.to(torch.int16).numpy())
    np.testing.assert_allclose(
        infer.answer(bundle_path, file).outputs, model(tokens).detach().numpy(), rtol=1e-4, atol=1e-5
    )
    for wrong in (np.full((1, 2), 2**63, np.uint64), np.ones((1, 2), np.float32)):
        np.save(file, wrong)
        with pytest.raises(infer.InferenceError, match="convert it"):
            infer.answer(bundle_path, file)
    np.save(file, np.full((1, 2), 99))  # in range for int64, and not for the model
    with pytest.raises(infer.InferenceError, match="ONNX Runtime cannot run"):
        infer.answer(bundle_path, file)


class Words(Task):
    """Sequences of four places and five words, whose logits are last."""

    name = "words"

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))

    def data(self) -> Splits:
        words = torch.arange(80).reshape(20, 4) % 5
        return Splits(*[Examples(words, words)] * 4)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(dim=-1) == targets


class Second(Words):
    """The same with the words second, as torch's losses have them."""

    def model(self) -> nn.Module:
        return nn.Sequential(super().model(), Swapped())

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(dim=1) == targets


class Swapped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


class Near(Words):
    """A regression: no classes."""

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs[..., 0] - targets).abs() < 0.5


@pytest.mark.parametrize(("kind", "axis"), [(Words, 2), (Second, 1), (Near, None)])
def test_the_class_at_each_place_is_along_the_axis_that_the_task_judges(
    kind: type[Words], axis: int | None, tmp_path: Path
) -> None:
    task = kind()
    model, inputs = task.model(), task.data().test.inputs
    student = Student(model, tensors=quantize.quantize(model), stages=(StageResult("quantized", 1, 1, 0, 0, 0, 0),))
    materials = Materials(model, task, inputs, None, teachers.of(model), seed=0)
    written = writer.WriteBundle(onnx=True)(student, materials)
    assert written.bundle is not None
    bundle, file = tmp_path / "b.fpb", tmp_path / "x.npy"
    bundle.write_bytes(written.bundle)
    np.save(file, inputs.numpy())
    classes = infer.answer(bundle, file).classes
    if axis is None:
        assert classes is None
    else:
        assert classes is not None and np.array_equal(classes, model(inputs).argmax(dim=axis).numpy())
        assert classes.shape == (20, 4)


def test_bundles_that_cannot_be_run(tmp_path: Path, path: Path, model: nn.Module, inputs: torch.Tensor) -> None:
    np.save(tmp_path / "x.npy", inputs.numpy())
    file = tmp_path / "phone.fpb"
    for data, fault, said in (
        (made(model, inputs), infer.InferenceError, "students: {quantize: {onnx: true}}"),
        (made(model, inputs, b"no model"), onnx_runtime.OnnxError, "no ONNX model"),
        (path.read_bytes()[:-1], errors.TruncatedBundle, "cut off"),
        (made(model, inputs, onnx_export.export(nn.Flatten(), inputs)), infer.InferenceError, "of another student"),
    ):
        file.write_bytes(data)
        with pytest.raises(fault, match=said):
            infer.answer(file, tmp_path / "x.npy")
    with pytest.raises(errors.NotSigned):
        infer.answer(path, tmp_path / "x.npy", public_key=b"k" * 32)
    with pytest.raises(infer.InferenceError, match="cannot read"):
        infer.answer(tmp_path / "none.fpb", tmp_path / "x.npy")


def test_the_command_prints_classes_and_writes_outputs(
    path: Path, model: nn.Module, inputs: torch.Tensor, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", inputs[:3].numpy())
    out, figures = tmp_path / "y.npy", tmp_path / "y.json"
    done = CliRunner().invoke(
        main, ["run", str(path), "--input", str(tmp_path / "x.npy"), "--out", str(out), "--json", str(figures)]
    )
    assert done.exit_code == 0, done.output
    expected = model(inputs[:3]).detach().numpy()
    classes = expected.argmax(axis=1).tolist()
    assert done.stdout.startswith("".join(f"{number}\t{found}\n" for number, found in enumerate(classes)))
    np.testing.assert_allclose(np.load(out), expected, rtol=1e-4, atol=1e-5)
    assert json.loads(figures.read_text()) == {"tier": "phone", "version": 3, "classes": classes}
    done = CliRunner().invoke(main, ["run", str(path), "--input", str(tmp_path / "none.npy")])
    assert done.exit_code == 2 and "error: cannot read" in done.output
    done = CliRunner().invoke(main, ["run", str(path), "--input", str(tmp_path / "x.npy"), "--out", "y.txt"])
    assert done.exit_code == 2 and "expected a file .npy" in done.output


@pytest.mark.slow
def test_without_torch_and_without_onnx_runtime(path: Path, inputs: torch.Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", inputs[:2].numpy())
    for missing, code, said in ((["torch", "flwr", "grpc"], 0, ""), (["onnxruntime"], 2, "[download,onnx]'")):
        script = (
            f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"  # importing them is an error now
            "from fedpress.simulations.__main__ import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, "run", str(path), "--input", str(tmp_path / "x.npy")],
            env={**os.environ}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def of_texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, dict[str, torch.Tensor]]:
    """A bundle whose student takes ids and a mask, the student, and a batch of 70 texts."""
    torch.manual_seed(0)
    model, inputs = texts.Pooled(places=True).eval(), texts.Texts("places").data().train.inputs
    batch = inputs.take(torch.arange(70))
    path = tmp_path_factory.mktemp("bundle") / "texts.fpb"
    path.write_bytes(made(model, batch, onnx_export.export(model, inputs)))
    return path, model, batch


def test_inputs_by_name_come_from_an_archive_or_from_json(
    of_texts: tuple[Path, nn.Module, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    path, model, batch = of_texts
    with torch.no_grad():
        expected = model(**batch).numpy()
    np.savez(tmp_path / "x.npz", **{name: part.numpy().astype(np.int32) for name, part in batch.items()})
    (tmp_path / "x.json").write_text(json.dumps({name: part.tolist() for name, part in batch.items()}))
    np.savez(tmp_path / "one.npz", **{name: part[0].numpy() for name, part in batch.items()})
    for name, many in (("x.npz", 70), ("x.json", 70), ("one.npz", 1)):
        found = infer.answer(path, tmp_path / name)
        np.testing.assert_allclose(found.outputs, expected[:many], rtol=1e-4, atol=1e-5)
        assert found.classes is not None and (found.classes == expected[:many].argmax(axis=1)).all()
    manifest = infer.answer(path, tmp_path / "x.npz").manifest
    assert manifest.inputs is not None and manifest.input_shape is None
    assert {name: (form.shape, form.dtype) for name, form in manifest.inputs.items()} == {
        "ids": ((None,), "int64"), "mask": ((None,), "int64")
    }  # fmt: skip
    assert manifest.output_shape == (3, None)


def test_inputs_by_name_that_do_not_fit(
    of_texts: tuple[Path, nn.Module, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    path, _, batch = of_texts
    ids, mask = (batch[name].numpy() for name in ("ids", "mask"))
    takes = r"ids \(int64, \(N, any\)\), mask \(int64, \(N, any\)\)"
    for arrays, said in (
        ({"ids": ids}, rf"has no input 'mask'; it has ids. The student takes {takes}"),
        ({"ids": ids, "masks": mask}, "has no input 'mask', but 'masks': is it that"),
        ({"ids": ids, "mask": mask, "labels": mask}, "has 'labels', which the student does not take"),
        ({"ids": ids.astype(np.float32), "mask": mask}, "input 'ids' holds float32, and the student takes int64"),
        ({"ids": ids, "mask": mask[:3]}, "'ids' has 70, 'mask' has 3 examples, expected as many"),
        ({"ids": ids, "mask": mask[:, :3]}, r"'ids' has \d+, 'mask' has 3 places"),
        ({"ids": ids[None], "mask": mask}, r"input 'ids' is of shape \(1, 70, \d+\): the student takes \(N, any\)"),
        ({"ids": ids[:, :0], "mask": mask[:, :0]}, "sequences of no places"),
    ):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(infer.InferenceError, match=said):
            infer.answer(path, tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", ids)
    with pytest.raises(infer.InferenceError, match=rf"is one array, and the student takes several by name: {takes}"):
        infer.answer(path, tmp_path / "x.npy")
    for text, said in (
        (
            '{"ids": [[1, 2], [3]], "mask": [[1, 1], [1]]}',
            "input 'ids' is no list of numbers, or of lists of one length",
        ),
        ('{"ids": ["a"], "mask": [[1]]}', "input 'ids' is no list of numbers"),
        ("[[1, 2]]", "holds a list, expected lists by the name of the input"),
        ("{", "is no JSON"),
    ):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(infer.InferenceError, match=said):
            infer.answer(path, tmp_path / "x.json")


def test_a_student_of_texts_is_rebuilt_from_its_bundle(
    of_texts: tuple[Path, nn.Module, dict[str, torch.Tensor]],
) -> None:
    class Named(texts.Texts):
        name = "t"

    path, model, batch = of_texts
    rebuilt = writer.rebuild(reader.open_bundle(path.read_bytes()), Named("places"))
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(**batch), model(**batch), rtol=0.05, atol=0.05)
