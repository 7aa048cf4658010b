"""The benchmark of the codec: its figures are those of payloads that were really made."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedpress.compression.encoders import encoder, selection
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values
from fedpress.simulations.__main__ import main
from fedpress.simulations.benchmarks import codec, codec_data
from fedpress.simulations.scenario import scenario

KEYS = (
    "size density data encode_over_copy naive_over_encode payload_bytes bits_per_nonzero relative_error"
    " index_bits_over_entropy decode_accumulate_mnnz_per_s accumulate_over_dense_add nncodec_over_encode"
    " nncodec_bits_per_nonzero nncodec_relative_error"
    " openfl_over_encode openfl_bits_per_nonzero openfl_relative_error"
)


def test_the_json_has_the_promised_keys(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    done = CliRunner().invoke(main, ["bench", "codec", "--size", "20000", "--json", str(target)])
    assert done.exit_code == 0, done.output
    figures = json.loads(target.read_text())
    assert set(KEYS.split()) <= set(figures)
    assert [figures[key] for key in figures if key.startswith(("nncodec", "openfl"))] == [None] * 6
    assert (figures["size"], figures["density"], figures["data"], figures["sent"]) == (20000, 0.01, "clustered", 200)
    assert 0 < figures["relative_error"] < 0.085 and figures["encode_over_copy"] > 0


def test_bytes_are_those_of_a_payload() -> None:
    figures = codec.run(50_000, 0.02, "uniform", "ternary", payloads=2, repetitions=1)
    update = codec_data.uniform(50_000)
    shared = SideInfo(Layout((TensorSpec("update", (50_000,), "float32"),)))
    payload, *_ = encoder.sparse(selection.top_k(0.02), values.TERNARY).encode(update, None, shared, 0)
    assert figures.payload_bytes == len(payload)
    assert figures.bits_per_nonzero == 8 * len(payload) / 1000
    assert figures.index_bits_over_entropy is not None and 1 < figures.index_bits_over_entropy < 1.02


@pytest.mark.parametrize("kind", codec_data.KINDS)
def test_every_kind_of_data_is_measured(kind: str) -> None:
    figures = codec.run(30_000, 0.01, kind, payloads=2, repetitions=1)
    assert figures.sent == min(300, np.count_nonzero(codec_data.KINDS[kind](30_000, 0)))
    assert figures.relative_error is not None and figures.relative_error < 0.15


def test_a_saved_update_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "update.npy"
    np.save(path, codec_data.clustered(5000))
    figures = codec.run(4000, 0.05, str(path), "int8", repetitions=1)
    assert (figures.size, figures.sent, figures.data) == (4000, 200, str(path))
    with pytest.raises(codec.BenchError, match="at least 6000 entries"):
        codec.run(6000, 0.05, str(path), repetitions=1)
    np.save(path, np.zeros(3))
    with pytest.raises(codec.BenchError, match="holds float64"):
        codec.run(3, 0.5, str(path), repetitions=1)


def test_an_update_of_zeros_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "update.npy"
    np.save(path, np.zeros(100, np.float32))
    figures = codec.run(100, 0.5, str(path), repetitions=1)
    assert figures.sent == 0 and figures.bits_per_nonzero is None and figures.index_bits_over_entropy is None
    assert dict(codec.facts(figures))["relative error"] == "not measured"


def test_the_update_of_a_real_client_is_measured() -> None:
    figures = codec.run(None, 0.01, "digits", payloads=1, repetitions=1)
    assert (figures.size, figures.sent) == (105_226, 1052)
    np.testing.assert_array_equal(*(codec_data.trained(scenario.load("digits")) for _ in range(2)))
    with pytest.raises(codec.BenchError, match="did you mean 'digits'"):
        codec.run(None, 0.01, "digts", repetitions=1)
