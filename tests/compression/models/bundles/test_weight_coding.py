"""Tensors as bytes: what is written is read again, in the shortest form, within 1 % of the entropy."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpress.compression.models.bundles import weight_coding
from fedpress.compression.models.bundles.errors import InvalidWeights, TooLarge
from fedpress.compression.models.bundles.weight_coding import TensorScheme
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized, Tensors


def drawn(shape: tuple[int, ...], bits: int, group: int, density: float, seed: int) -> Quantized:
    random = np.random.default_rng(seed)
    values = random.normal(size=shape).astype(np.float32) * (random.random(shape) < density)
    return quantized_tensor.to_nearest(values, quantized_tensor.find_scales(values, bits, group), bits, group)


QUANTIZED = st.builds(
    drawn,
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 3)),
    st.integers(2, 8),
    st.sampled_from([0, 1, 4]),
    st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    st.integers(0, 99),
)
PLAIN = st.sampled_from(
    [
        np.array([0.5, -1e-9, 1e30], np.float32),
        np.array([0.5, 1.0], np.float32),
        np.zeros((40, 40), np.bool_),
        np.array(7, np.int64),
        np.zeros((0, 3), np.int32),
    ]
)


def read_again(tensors: Tensors) -> dict[str, str]:
    data, forms = weight_coding.pack(tensors)
    found, again = weight_coding.unpack(
        data, {name: weight_coding.scheme_of(tensor) for name, tensor in tensors.items()}
    )
    assert again == forms and found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        other: Any = found[name]
        if isinstance(tensor, Quantized):
            assert tensor.codes.dtype == other.codes.dtype and (tensor.bits, tensor.group) == (other.bits, other.group)
            np.testing.assert_array_equal(tensor.codes, other.codes)
            np.testing.assert_array_equal(tensor.scales, other.scales)
        else:
            assert tensor.dtype == other.dtype
            np.testing.assert_array_equal(tensor, other)
    return forms


@settings(max_examples=40)
@given(st.lists(QUANTIZED | PLAIN, max_size=4))
def test_what_is_written_is_read_again(tensors: list[Any]) -> None:
    read_again({f"tensor {place}": tensor for place, tensor in enumerate(tensors)})


@settings(max_examples=40)
@given(st.lists(QUANTIZED | PLAIN, max_size=4))
def test_no_form_is_longer_than_the_schemes_allow(tensors: list[Any]) -> None:
    named = {f"tensor {place}": tensor for place, tensor in enumerate(tensors)}
    schemes = {name: weight_coding.scheme_of(tensor) for name, tensor in named.items()}
    longest = weight_coding.longest_bytes(schemes)
    assert all(len(weight_coding.pack(named, coded)[0]) <= longest for coded in (True, False))
    parts = [part for tensor in tensors for part in (tensor[:2] if isinstance(tensor, Quantized) else [tensor])]
    assert weight_coding.decoded_bytes(schemes) == sum(part.nbytes for part in parts)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_without_any_pattern_take_no_more_than_the_schemes_allow(bits: int) -> None:
    most = quantized_tensor.levels(bits)
    codes = np.random.default_rng(0).integers(-most, most, (60, 3000), np.int8, endpoint=True)
    tensor = Quantized(codes, np.random.default_rng(1).random((60, 1), np.float32) + 1, bits)
    assert len(weight_coding.pack({"w": tensor})[0]) <= weight_coding.longest_bytes(
        {"w": weight_coding.scheme_of(tensor)}
    )


@pytest.mark.parametrize("piece", [1, 7, 250, 10**6])
def test_any_number_of_strings_holds_the_same_tensors(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors: Tensors = {
        "a": drawn((6, 50), 4, 0, 1.0, 0),
        "b": drawn((5, 40), 8, 5, 0.2, 1),
        "c": np.ones(3, np.float32),
    }
    whole = weight_coding.pack(tensors)[0]
    monkeypatch.setattr(weight_coding, "PIECE", piece)
    read_again(tensors)
    data = weight_coding.pack(tensors)[0]
    assert (data == whole) == (piece == 10**6)
    schemes = {name: weight_coding.scheme_of(tensor) for name, tensor in tensors.items()}
    with pytest.raises(InvalidWeights):
        weight_coding.unpack(data[:-2], schemes)


def test_the_shortest_form_is_taken() -> None:
    random = np.random.default_rng(0)
    dead = drawn((200, 300), 4, 0, 0.5, 0)
    dead.codes[:, 20:] = 0  # whole inputs of the layer
    ones = np.ones((4, 1), np.float32)
    forms = read_again(
        {
            "dense": drawn((50, 80), 4, 0, 1.0, 0),
            "rows": Quantized(
                np.ascontiguousarray(dead.codes.T), np.ones((300, 1), np.float32) * dead.codes.T.any(axis=1)[:, None], 4
            ),
            "columns": dead,
            "empty": Quantized(np.zeros((4, 1000), np.int8), 0 * ones, 4),
            "free scales": Quantized(np.ones((4, 9), np.int8), random.random((4, 1), np.float32), 8),
            "half": np.array([0.5, 1.0], np.float32),
            "mask": np.tri(64, dtype=np.bool_),
        }
    )
    assert list(forms.values()) == ["dense", "sparse", "sparse by columns", "dense", "dense", "float16", "deflated"]


@pytest.mark.parametrize(("bits", "density"), [(8, 1.0), (4, 1.0), (3, 1.0), (4, 0.3)])
def test_ten_thousand_weights_take_their_entropy_and_1_percent(bits: int, density: float) -> None:
    tensor = drawn((20, 500), bits, 0, density, 1)
    data, _ = weight_coding.pack({"w": tensor})
    _, counts = np.unique(tensor.codes, return_counts=True)
    entropy = -(counts @ np.log2(counts / counts.sum())) / 8
    scales, _ = weight_coding.pack({"w": tensor._replace(codes=np.ones_like(tensor.codes))})  # codes of no entropy
    assert len(data) <= 1.01 * entropy + len(scales)


def test_scales_on_the_grid_take_less_than_a_byte_each() -> None:
    codes = drawn((64, 256), 4, 0, 1.0, 0).codes
    exponents = np.random.default_rng(0).normal(scale=5, size=(64, 8)).round().astype(np.int64)
    few = Quantized(codes, quantized_tensor.powers(exponents[:, :1]), 4)
    many = Quantized(codes, quantized_tensor.powers(exponents), 4, 32)
    assert 0 < len(weight_coding.pack({"w": many})[0]) - len(weight_coding.pack({"w": few})[0]) < 0.7 * 64 * 7


SPARSE = drawn((30, 100), 4, 0, 0.3, 3)
SPARSE.codes[5:] = 0  # whole neurons are gone
DATA = weight_coding.pack({"w": SPARSE})[0]
SCHEME = TensorScheme((30, 100), bits=4)


def test_without_entropy_coding_the_length_does_not_depend_on_the_numbers() -> None:
    tensors: Tensors = {"w": drawn((20, 50), 3, 8, 1.0, 0), "b": np.zeros(9, np.float32)}
    others: Tensors = {"w": drawn((20, 50), 3, 8, 0.1, 1), "b": np.arange(9, dtype=np.float32)}
    longest = [weight_coding.pack(one, entropy_coded=False)[0] for one in (tensors, others)]
    assert len(longest[0]) == len(longest[1]) > max(len(weight_coding.pack(one)[0]) for one in (tensors, others))
    found, forms = weight_coding.unpack(
        longest[0], {name: weight_coding.scheme_of(one) for name, one in tensors.items()}
    )
    assert forms == {"w": "packed", "b": "plain"}
    assert np.array_equal(found["w"][0], tensors["w"][0])  # type: ignore[index]


def changed(place: int, value: bytes) -> bytes:
    return DATA[:place] + value + DATA[place + len(value) :]


@pytest.mark.parametrize(
    ("data", "scheme", "message"),
    [
        (b"", SCHEME, "are expected"),
        (changed(0, b"\7"), SCHEME, "form 7"),
        (changed(0, b"\0"), SCHEME, "form 0 is no form of a quantized"),
        (DATA, TensorScheme((30, 100), "float32"), "form . is no form of a float32"),
        (changed(1, struct.pack("<I", 3001)), SCHEME, "3,001 of 3,000"),
        (changed(5, b"\4"), SCHEME, "positions of form 4"),
        (changed(5, b"\5"), SCHEME, "positions of form 5"),
        (changed(5, b"\0"), SCHEME, "positions take"),
        (changed(6, struct.pack("<I", 2**31)), SCHEME, "are expected"),
        (DATA[:20], SCHEME, "are expected|table|positions"),
        (DATA[:-2], SCHEME, "end before|entropy-coded"),
        (DATA + bytes(2), SCHEME, "left over"),
        (DATA, TensorScheme((30, 100), bits=3), "exceeds? 3 bits"),
        (b"\0\0\0\xc0\x7f", TensorScheme((1,), "float32"), "NaN"),
        (b"\0\2", TensorScheme((1,), "bool"), "a bool is"),
        (b"\2\2\0\0\0xx", TensorScheme((1,), "int64"), "not a zlib stream"),
        (b"\6\x0f\1\0\0" + bytes(6), TensorScheme((1, 1), bits=4), "exceeds? 4 bits"),
        (b"\3\x80\0\0\0\0\x80\xff" + bytes(5), TensorScheme((1, 1), bits=4), "below zero"),
        (b"\3\x80\0\2", TensorScheme((1, 1), bits=4), "scales of kind 2"),
        (b"\3\x80\0\1\0\x7f\x80\0" + bytes(5), TensorScheme((1, 1), bits=4), "normal numbers"),
    ],
)
def test_each_fault_is_refused(data: bytes, scheme: TensorScheme, message: str) -> None:
    with pytest.raises(InvalidWeights, match=message):
        weight_coding.unpack(data, {"w": scheme})


def test_more_entries_than_the_bytes_warrant_are_refused() -> None:
    with pytest.raises(TooLarge, match="1,024 a byte"):
        weight_coding.unpack(DATA, {"w": TensorScheme((2000, 2000), bits=4)})
