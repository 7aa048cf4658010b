"""The page about transformers: its code runs, on a BERT drawn from a configuration and a dozen words."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpress.compression.models.quantization.quantized_tensor import Quantized

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "quantize-transformer.md"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what transformers imports
def test_the_page_runs_from_the_first_block_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra text-models is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="the extra text-models is not installed")
    words = "[PAD] [UNK] in the beginning god created heaven and earth".split()
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    transformers.BertModel(
        transformers.BertConfig(vocab_size=len(words), **sizes), add_pooling_layer=False
    ).save_pretrained(tmp_path)
    (tmp_path / "texts.txt").write_text("in the beginning\ngod created the heaven\nand the earth\n" * 4)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"folder": str(tmp_path)}
    blocks = re.findall(r'```python title="\w+\.py"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), namespace)
    cosine, size = re.match(r"tensor\((.*)\)\n(\d+) bytes", capsys.readouterr().out).groups()  # type: ignore[union-attr]
    assert (
        float(cosine) > 0.95 and int(size) < 4 * sum(tensor.numel() for tensor in namespace["model"].parameters()) / 6
    )
    densities = [density for name, density in namespace["masks"].items() if name.startswith("encoder")]
    assert densities and all(mask.float().mean() == pytest.approx(0.5, abs=0.01) for mask in densities)
    layer = next(name for name in namespace["tensors"] if name.endswith("intermediate.dense.weight"))
    tensor = namespace["tensors"][layer]
    assert isinstance(tensor, Quantized) and not tensor.codes[~namespace["masks"][layer].numpy()].any()
