"""The container of a bundle: what is packed is unpacked, each fault has its error, and no flipped bit gets through."""

import hashlib
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.models.bundles.samples import (
    DATA,
    KEY,
    MANIFEST,
    MANIFEST_BYTES,
    ONNX_BYTES,
    PUBLIC,
    START,
    STUDENT,
    WEIGHTS,
    WEIGHTS_BYTES,
    assembled,
    header,
    saved,
)

from fedpress.compression.models.bundles import container, errors


def test_every_flipped_bit_is_found() -> None:
    for position in range(len(DATA)):
        for bit in range(8):
            damaged = bytearray(DATA)
            damaged[position] ^= 1 << bit
            with pytest.raises(errors.BundleError):
                container.unpack(bytes(damaged))


@given(st.integers(0, len(DATA) - 1))
def test_every_cut_is_found(length: int) -> None:
    with pytest.raises(errors.TruncatedBundle):
        container.unpack(DATA[:length])


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused_by_a_bundle_error(noise: bytes, with_header: bool) -> None:
    with pytest.raises(errors.BundleError):
        container.unpack(DATA[: container.HEADER.size] + noise if with_header else noise)


@pytest.mark.parametrize(
    ("damaged", "error", "message"),
    [
        (b"", errors.TruncatedBundle, "0 bytes"),
        (DATA[:20], errors.TruncatedBundle, "header alone has 54"),
        (DATA[:-1], errors.TruncatedBundle, "cut off"),
        (b"PK\x03\x04" + DATA[4:], errors.BadBundleMagic, "another kind of file"),
        (header(version=1), errors.UnsupportedBundleVersion, "version 1, expected 2"),
        (header(version=3), errors.UnsupportedBundleVersion, "version 3, expected 2"),
        (header(flag=2), errors.UnsupportedBundleVersion, "flag 2"),
        (header(manifest=container.MAX_MANIFEST_BYTES + 1), errors.TooLarge, "1,048,577"),
        (header(coded=2**32 - 1), errors.TooLarge, "4,294,967,295"),
        (header(onnx=2**32 - 1), errors.TooLarge, "4,294,967,295"),
        (header(plain=2**32 - 1), errors.TooLarge, "decoded"),
        (header(plain=container.MAX_RATIO * ONNX_BYTES + 1), errors.TooLarge, "zlib makes at most 1,032 of one"),
        (DATA + b"\0", errors.TrailingBytes, "joined"),
        (header(flag=0), errors.TrailingBytes, "joined"),
        (DATA[:-1] + bytes([DATA[-1] ^ 1]), errors.BundleChecksumMismatch, "download it again"),
        (header(plain=7), errors.BundleChecksumMismatch, "damaged"),
        (assembled(b"no zlib", b""), errors.InvalidManifest, "not a zlib stream"),
        (assembled(zlib.compress(b"{}") + b"more", b""), errors.InvalidManifest, "does not end"),
        (assembled(zlib.compress(b"{}")[:-1], b""), errors.InvalidManifest, "does not end"),
        (assembled(zlib.compress(bytes(container.MAX_MANIFEST_BYTES + 1)), b""), errors.InvalidManifest, "1,048,576"),
        (assembled(zlib.compress(MANIFEST), WEIGHTS, b"no zlib", 9), errors.InvalidOnnx, "not a zlib stream"),
        (assembled(zlib.compress(MANIFEST), WEIGHTS, zlib.compress(bytes(9)), 8), errors.InvalidOnnx, "more than 8"),
    ],
)
def test_each_fault_has_its_error(damaged: bytes, error: type[errors.BundleError], message: str) -> None:
    with pytest.raises(errors.BundleError, match=message) as caught:
        container.unpack(damaged)
    assert type(caught.value) is error


def test_a_signature_is_verified_by_the_key_that_is_given() -> None:
    assert container.unpack(DATA, PUBLIC) == container.unpack(DATA) and container.unpack(DATA).signed
    for file, key in ((DATA, bytes(32)), (saved(STUDENT, private_key=bytes(32)), PUBLIC)):
        with pytest.raises(errors.WrongSignature, match="somebody else"):
            container.unpack(file, key)
    with pytest.raises(errors.NotSigned, match="carries no signature"):
        container.unpack(saved(STUDENT), PUBLIC)


def test_nothing_that_is_signed_can_be_changed_and_the_checksum_mended() -> None:
    head = container.HEADER.size
    body = START + MANIFEST_BYTES + WEIGHTS_BYTES + ONNX_BYTES
    for position in [4 + 4, *range(START, body, 7), body, len(DATA) - 1]:
        damaged = bytearray(DATA)
        damaged[position] ^= 1
        damaged[head:START] = hashlib.sha256(damaged[:head] + damaged[START:]).digest()
        with pytest.raises(errors.BundleError) as caught:
            container.unpack(bytes(damaged), PUBLIC)
        assert isinstance(
            caught.value, errors.WrongSignature | errors.TruncatedBundle | errors.TrailingBytes | errors.TooLarge
        )


def test_a_small_file_cannot_fill_the_memory() -> None:
    deflated = zlib.compress(bytes(50_000_000))
    bombs = [
        assembled(zlib.compress(MANIFEST), WEIGHTS, deflated, 1000),
        assembled(deflated, WEIGHTS),
    ]
    for bomb in bombs:
        tracemalloc.start()
        with pytest.raises(errors.BundleError, match="more than"):
            container.unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
        tracemalloc.stop()


def test_what_would_not_be_read_again_is_not_packed() -> None:
    with pytest.raises(errors.TooLarge, match="a manifest of 1,048,577, .* have room in the format"):
        container.pack(bytes(container.MAX_MANIFEST_BYTES + 1), b"")


def test_a_device_takes_no_more_than_its_limit_and_another_device_more() -> None:
    size = MANIFEST_BYTES + WEIGHTS_BYTES + ONNX_BYTES
    assert container.unpack(DATA, limit=size) == container.unpack(DATA)
    with pytest.raises(errors.TooLarge, match=f"{size - 1:,} in all are taken here.*--largest-mib"):
        container.unpack(DATA, limit=size - 1)


def test_the_manifest_is_asked_before_the_onnx_model_is_decoded() -> None:
    asked = []

    def check(manifest: bytes, weights: int, onnx: int) -> None:
        asked.append((manifest, weights, onnx))
        raise errors.TooLarge("no")

    with pytest.raises(errors.TooLarge, match="no"):
        container.unpack(assembled(zlib.compress(MANIFEST), WEIGHTS, b"no zlib", 9), check=check)
    assert asked == [(MANIFEST, len(WEIGHTS), 9)]


def test_the_header_is_the_documented_one() -> None:
    magic, version, manifest_bytes, weights_bytes, onnx_bytes, plain_bytes, flag = struct.unpack_from("<4sBIIIIB", DATA)
    assert (magic, version, plain_bytes, flag) == (b"\x89FPB", 2, 6, 1)
    assert DATA[22:54] == hashlib.sha256(DATA[:22] + DATA[54:]).digest()
    assert len(DATA) == 54 + manifest_bytes + weights_bytes + onnx_bytes + 64


@given(st.binary(max_size=50), st.binary(max_size=50), st.binary(max_size=50), st.sampled_from([None, KEY, bytes(32)]))
def test_what_is_packed_is_unpacked(text: bytes, weights: bytes, onnx: bytes, key: bytes | None) -> None:
    data = container.pack(text, weights, onnx, key)
    assert container.unpack(data) == (container.VERSION, text, weights, onnx, key is not None)
    assert container.pack(text, weights, onnx, key) == data
    if key == KEY:
        assert container.unpack(data, PUBLIC) == container.unpack(data)


@given(st.binary(max_size=100), st.integers(0, 100))
def test_no_more_is_inflated_than_is_allowed(plain: bytes, most: int) -> None:
    coded = zlib.compress(plain)
    if len(plain) <= most:
        assert container.inflate(coded, most, errors.InvalidOnnx) == plain
    else:
        with pytest.raises(errors.InvalidOnnx, match=f"holds more than {most}"):
            container.inflate(coded, most, errors.InvalidOnnx)
