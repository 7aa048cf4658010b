"""The study of small transformers runs from the teacher to the test, and goes on where it was cut off."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.apps import lazily, tiny_encoder

from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning.structural import parameters_of
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.simulations.studies import transformer
from fedpress.simulations.tasks.verses import Verses


def test_latencies_are_compared_with_the_first() -> None:
    found = transformer.latencies({"slow": lambda: time.sleep(0.02), "quick": lambda: None}, repetitions=3)
    assert found["slow"].milliseconds >= 20 and found["slow"].ratio == 1


@lazily.NEEDS_TEXT_MODELS
@pytest.mark.long
def test_every_part_runs_on_what_the_last_one_has_left(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    encoder, texts = tiny_encoder.write(tmp_path / "encoder"), tiny_encoder.texts(tmp_path / "texts")
    task = Verses(encoder=str(encoder), data_dir=str(texts), length=12, adapter="none")
    study = transformer.Study(task, tmp_path / "models", examples=4, texts=12)
    study.save("teacher", transformer.tuned(study, steps=3))

    settings = Distillation(epochs=1, learning_rate=1e-3)
    rows = list(transformer.steps(study, 1, 0.9, settings))
    names = [row.split("|")[1].strip() for row in rows[1:]]
    assert names == ["teacher", "vocabulary", "1 layers", "heads and columns to 90%", "distilled"]
    sizes = [int(row.split("|")[2].replace(",", "")) for row in rows[1:]]
    assert sizes[0] >= sizes[1] > sizes[2] > sizes[3] == sizes[4] == parameters_of(study.load("student"))

    (row,) = transformer.rounding(study, (Quantization(bits=4),))
    assert row.startswith("| 4 bits, nearest |")
    assert len(list(transformer.latency(study, repetitions=2))) == 1 + 3
    figures = list(transformer.test(study))
    assert figures[0].startswith("teacher ") and figures[-1].startswith("file with ONNX")
    again = transformer.Study(task, tmp_path / "models", examples=4, texts=12)
    assert list(transformer.steps(again, 1, 0.9, settings))[:5] == rows[:5]
