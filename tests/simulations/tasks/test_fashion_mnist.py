"""Fashion-MNIST: the real files where they are installed, and crafted faults everywhere."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpress.compression.models.task import check_splits
from fedpress.simulations.tasks import registry
from fedpress.simulations.tasks.fashion_mnist import DEBIAN, FILES, FashionMNIST
from fedpress.simulations.tasks.registry import TaskError

real = pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes(), 1)


@pytest.fixture
def small(tmp_path):
    """A folder like the real one with 6,100 training images, each marked by its number."""
    draw = np.random.default_rng(0)
    for images, labels, count in ((FILES[0], FILES[1], 6_100), (FILES[2], FILES[3], 50)):
        pixels = np.zeros((count, 28, 28), np.uint8)
        pixels[:, 0, 0], pixels[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
        pixels[:, 1, 0] = 255 if count == 50 else 0
        (tmp_path / images).write_bytes(idx(pixels))
        (tmp_path / labels).write_bytes(idx(draw.permutation(np.arange(count) % 10)))
    return tmp_path


def numbers(examples) -> set[int]:
    pixels = (examples.inputs * 255).round().int()
    return set((pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 0, 1] + 65536 * (pixels[:, 0, 1, 0] > 0)).tolist())


def test_held_out_parts_are_the_right_size_and_share_no_image(small):
    splits = FashionMNIST(str(small)).data()
    check_splits(splits)
    assert [len(part.targets) for part in splits] == [100, 5_000, 1_000, 50]
    marks = [numbers(part) for part in splits]
    assert len(set.union(*marks)) == sum(map(len, marks)) == 6_150


@real
def test_the_real_data():
    splits = FashionMNIST().data()
    check_splits(splits)
    assert [len(part.targets) for part in splits] == [54_000, 5_000, 1_000, 10_000]
    for part in splits:
        assert part.inputs.shape[1:] == (1, 28, 28) and part.inputs.dtype == torch.float32
        assert part.inputs.min() == 0.0 and part.inputs.max() == 1.0
        assert len(set(torch.bincount(part.targets).tolist())) == 1  # stratified: the same of each class


def test_the_model_is_the_one_of_582026_parameters():
    model = FashionMNIST().model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 582_026
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_an_absent_folder_says_how_to_get_the_data(tmp_path):
    with pytest.raises(TaskError, match=r"does not exist.*apt-get install dataset-fashion-mnist.*task\.data_dir=") as e:
        FashionMNIST(str(tmp_path / "nowhere")).data()
    assert "nowhere" in str(e.value)


def test_an_absent_file_is_named(small):
    (small / FILES[3]).unlink()
    with pytest.raises(TaskError, match=f"lacks {FILES[3]}"):
        FashionMNIST(str(small)).data()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "cannot be unpacked"),
        (lambda path: path.write_bytes(b"not gzip at all"), "cannot be unpacked"),
        (lambda path: path.write_bytes(gzip.compress(b"")), "no IDX file"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x0d\3" + bytes(12))), "starts with 00000d03"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\3\0\0")), "cut short"),
        (lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1])), "cut short"),
        (lambda path: path.write_bytes(idx(np.zeros((6_100, 20, 20)))), "expected .N, 28, 28."),
        (lambda path: path.write_bytes(idx(np.zeros((6_099, 28, 28)))), "do the files belong to one data set"),
    ],
)
def test_a_damaged_file_is_named(small, damage, text):
    damage(small / FILES[0])
    with pytest.raises(TaskError, match=text) as caught:
        FashionMNIST(str(small)).data()
    assert FILES[0] in str(caught.value)


def test_labels_out_of_range(small):
    (small / FILES[3]).write_bytes(idx(np.full(50, 10)))
    with pytest.raises(TaskError, match="a label is 10, expected 0 to 9"):
        FashionMNIST(str(small)).data()


def test_too_few_images(small, tmp_path):
    (small / FILES[0]).write_bytes(idx(np.zeros((6_000, 28, 28))))
    (small / FILES[1]).write_bytes(idx(np.zeros(6_000)))
    with pytest.raises(TaskError, match="expected 60,000 and at least 6001"):
        FashionMNIST(str(small)).data()


def test_data_are_read_once_a_folder(small):
    first = FashionMNIST(str(small)).data()
    shutil.rmtree(small)
    assert FashionMNIST(str(small)).data().train.inputs is first.train.inputs


@real
@pytest.mark.parametrize(("labels", "last"), [(2, [7, 9]), (3, [6, 7, 9])])
def test_the_example_draws_labels_as_the_baseline_of_flower_does(labels: int, last: list[int]) -> None:
    """What its generator with seed 42 gives the last client."""
    task = registry.create("niid_draw:Drawn", {"labels": labels}, Path(__file__).parents[3] / "docs" / "examples")
    clients, targets = task.groups(), task.data().train.targets.numpy()
    assert len(clients) == len(targets) and set(clients) == set(range(10))
    held = [sorted(set(targets[clients == client].tolist())) for client in range(10)]
    assert {len(one) for one in held} == {labels} and held[9] == last
    for label in range(10):
        counts = [((clients == client) & (targets == label)).sum() for client in range(10)]
        assert sum(counts) == (targets == label).sum() and len({count for count in counts if count}) <= 2
