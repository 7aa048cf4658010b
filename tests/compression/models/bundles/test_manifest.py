"""The manifest: what is written is read again, and anything else is refused at the field that is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.models.bundles.samples import MANIFEST, SCHEMES, SHAPES, manifest

from fedpress.compression.models.bundles import errors, weight_coding
from fedpress.compression.models.bundles import manifest as manifests
from fedpress.compression.models.bundles.weight_coding import TensorScheme


@given(st.binary(max_size=300))
def test_any_other_bytes_are_refused(noise: bytes) -> None:
    with pytest.raises(errors.InvalidManifest, match="the manifest is invalid at"):
        manifests.parse(noise)


def test_a_deeply_nested_manifest_is_refused() -> None:
    with pytest.raises(errors.InvalidManifest):
        manifests.parse(b"[" * 100_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "JSON"),
        (b"{}", "invalid at task"),
        (manifest(tier="../../etc"), "invalid at tier"),
        (manifest(version=-1), "invalid at version"),
        (manifest(version="3"), "invalid at version"),
        (manifest(shapes={"0.weight": [1.5]}), "invalid at shapes"),
        (manifest(run="import os"), "invalid at run"),
        (manifest(metrics={"accuracy": float("nan")}), "invalid at"),
        (manifest(shapes=SHAPES | {"extra": [1]}), "differ in .'extra'"),
        (manifest(shapes=SHAPES | {"7.bias": [-10]}), r"invalid at shapes.7.bias.0: .* greater than or equal to 0"),
        (manifest(shapes=SHAPES | {"7.bias": [1] * 65}), r"invalid at shapes.7.bias: .* at most 32 items"),
        (manifest(shapes=SHAPES | {"7.bias": [2**63]}), r"invalid at shapes.7.bias.0"),
        (manifest(shapes=SHAPES | {"7.bias": [True]}), r"invalid at shapes.7.bias.0"),
        (manifest(shapes=SHAPES | {"7.bias": [[10]]}), r"invalid at shapes.7.bias.0"),
        (manifest(shapes=SHAPES | {"7.bias": [0, 2**31 - 1, 2**31 - 1]}), "at most 1,099,511,627,776 entries"),
        (manifest(input_shape=[-1]), "invalid at input_shape.0"),
        (manifest(output_shape=[1] * 65), "invalid at output_shape"),
        (manifest(version=10**30), "invalid at version"),
        (manifest(schemes=SCHEMES | {"7.bias": "float64"}), "'float64' is no scheme"),
        (manifest(schemes=SCHEMES | {"7.bias": "int8 by channel"}), "is no scheme"),
        (manifest(schemes=SCHEMES | {"7.weight": "int9 by channel"}), "is no scheme"),
        (manifest(schemes=SCHEMES | {"7.weight": "int4 by 0"}), "is no scheme"),
    ],
)
def test_each_fault_is_named_by_its_field(text: bytes, message: str) -> None:
    with pytest.raises(errors.InvalidManifest, match=message):
        manifests.parse(text)


def test_what_is_written_is_read_again() -> None:
    parsed = manifests.parse(MANIFEST)
    assert parsed.model_dump_json(exclude_none=True).encode() == MANIFEST
    assert list(parsed.tensor_schemes()) == list(SCHEMES)  # in the order of writing, which JSON keeps
    assert {name: scheme.shape for name, scheme in parsed.tensor_schemes().items()} == parsed.shapes


sizes = st.integers(0, 9)


@given(
    st.builds(
        lambda shape, dtype: TensorScheme(shape, dtype),
        st.lists(sizes, max_size=3).map(tuple),
        st.sampled_from(sorted(weight_coding.DTYPES)),
    )
    | st.builds(
        lambda shape, bits, group: TensorScheme(shape, "", bits, group),
        st.lists(sizes, min_size=2, max_size=4).map(tuple),
        st.integers(2, 8),
        st.integers(0, 999_999_999),
    )
)
def test_a_scheme_is_read_from_its_words(scheme: TensorScheme) -> None:
    assert manifests.scheme_of(scheme.shape, manifests.text_of(scheme)) == scheme
