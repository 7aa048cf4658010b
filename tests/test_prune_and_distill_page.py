"""The page on small models from large ones: its code runs, on a BERT drawn from a configuration and a dozen words."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.apps import lazily, tiny_encoder
from typer.testing import CliRunner

from fedpress.compression.models.bundles import onnx_runtime, onnx_weights, reader
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.simulations.__main__ import main
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.scenario import scenario

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "prune-and-distill.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_recipe_stands_for_the_settings_of_the_page() -> None:
    short, long, *_ = blocks("yaml")
    found = [scenario.load("minilm-verses", [f"students={_flow(block)}"]).students for block in (short, long)]
    assert found[0].model_copy(update={"recipe": None}) == found[1]


def _flow(block: str) -> str:
    """Return the section `students` of a block in one line."""
    import yaml

    return str(yaml.safe_dump(yaml.safe_load(block)["students"], default_flow_style=True, width=10_000)).split("\n...")[
        0
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what transformers imports
def test_the_page_runs_from_the_first_block_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra text-models is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="the extra text-models is not installed")
    words = "[PAD] [UNK] in the beginning god created heaven and earth was without form void".split()
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=200, num_labels=3, **sizes)
    ).save_pretrained(tmp_path)
    (tmp_path / "texts.txt").write_text("in the beginning\ngod created the heaven\nand the earth\n" * 8)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"folder": str(tmp_path)}
    found = blocks(r'python title="\w+\.py"')
    assert len(found) == 9
    for block in found[:-1]:
        exec(compile(block, PAGE.name, "exec"), names)
    tokens, figures = capsys.readouterr().out.splitlines()
    assert tokens == "9 of 200 tokens"
    size, whole = (int(number.replace(",", "")) for number in re.findall(r"[\d,]{5,}", figures))
    assert size < whole / 5 and len(names["file"]) == size
    assert names["student"].config.num_hidden_layers == 1
    opened = reader.open_bundle(names["file"])
    run = onnx_runtime.runner(onnx_weights.filled(opened.onnx or b"", opened.weights))
    answers = run({name: part.numpy() for name, part in names["texts"].items()})
    expected = names["small"](**names["texts"]).logits.detach().numpy()
    assert abs(answers - expected).max() < 0.1 * abs(expected).max() + 0.05
    exec(compile(found[-1], PAGE.name, "exec"), names)
    densities = [mask.float().mean() for name, mask in names["masks"].items() if "encoder" in name]
    assert densities and all(density == pytest.approx(0.5, abs=0.02) for density in densities)
    layer = next(name for name in names["tensors"] if name.endswith("intermediate.dense.weight"))
    tensor = names["tensors"][layer]
    assert isinstance(tensor, Quantized) and not tensor.codes[~names["masks"][layer].numpy()].any()


@lazily.NEEDS_TEXT_MODELS
@pytest.mark.long
def test_the_recipe_makes_a_student_of_adapters_that_clients_have_trained(tmp_path: Path) -> None:
    encoder, texts = tiny_encoder.write(tmp_path / "encoder"), tiny_encoder.texts(tmp_path / "texts")
    settings = [
        f"task={{name: verses, encoder: {encoder}, data_dir: {texts}, length: 12}}",
        *("clients=4", "sampling.clients_per_round=4", "rounds=2", "workers=1", "training.batch_size=8"),
        "students={recipe: transformer, distill: {epochs: 20}, quantize: {onnx: true}}",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    ended = CliRunner().invoke(main, ["simulate", "minilm-verses", *options, "--out", str(tmp_path / "run")])
    assert ended.exit_code == 0, ended.output
    run = RunFolder.open(tmp_path / "run")
    (student,) = run.load_results().students
    assert [stage.name for stage in student.stages] == ["teacher", "pruned", "distilled", "quantized", "onnx"]
    opened = reader.open_bundle(next(run.bundles.rglob("*.fpb")).read_bytes())
    assert not any("lora_" in name or "layer.1." in name for name in opened.manifest.shapes)
    assert opened.onnx is not None
    assert len(opened.onnx) < len(onnx_weights.filled(opened.onnx, opened.weights))
