"""`fedpress inspect`: payloads, bundles and run folders, whole, damaged and signed by others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.apps.command_line import ShortRun, invoke

from fedpress.compression.encoders import encoder, selection
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values
from fedpress.simulations.cli import inspection

Refused = Callable[[list[str]], str]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["inspect", "nowhere"], "there is no file or folder nowhere"),
        (["inspect", "full"], "holds no results.json"),
        (["inspect", "full/text"], "neither a payload nor a bundle nor a run folder"),
        (["inspect", "full", "--key", "key.pem"], "full is a run; --key is for one of the bundles in it"),
        (["inspect", "/dev/zero"], "cannot read /dev/zero: it is no regular file"),
        (["run", "/dev/zero", "--input", "/dev/zero"], "cannot read /dev/zero: it is no regular file"),
        (["inspect", "full/text", "--key", "/dev/zero"], "neither a payload nor a bundle"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(arguments: list[str], text: str, refused: Refused) -> None:
    assert text in refused(arguments)


@pytest.fixture
def payload() -> bytes:
    """An update of 1,000 entries, of which 50 are sent."""
    layout = Layout.of_arrays({"weight": np.zeros((100, 10), np.float32)})
    update = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    sparse = encoder.sparse(selection.top_k(0.05), values.by_name("ternary"))
    return sparse.encode(update, sparse.init(layout), SideInfo(layout), 1).payload


def test_a_payload(payload: bytes, tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(payload)
    done = invoke("inspect", tmp_path / "payload", "--json", tmp_path / "payload.json")
    assert done.exit_code == 0, done.stderr
    assert "payload: a payload" in done.stdout
    assert "50 of 1,000 (5.000%)" in done.stdout
    assert json.loads((tmp_path / "payload.json").read_text())["count"] == 50
    with pytest.raises(inspection.InspectionError, match="carries no signature; leave out --key"):
        inspection.inspect(tmp_path / "payload", tmp_path / "key.pem")


def test_a_truncated_payload(payload: bytes, tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(payload[:-1])
    refused = invoke("inspect", tmp_path / "payload")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ") and isinstance(refused.exception, SystemExit)


@pytest.mark.slow
def test_a_run(short_run: ShortRun, tmp_path: Path) -> None:
    done = invoke("inspect", short_run.run, "--json", tmp_path / "inspected.json")
    assert done.exit_code == 0, done.stderr
    assert "/run: a run" in done.stdout and "2 of 2" in done.stdout
    assert json.loads((tmp_path / "inspected.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_bundle_and_one_with_a_flipped_bit(short_run: ShortRun, tmp_path: Path) -> None:
    done = invoke("inspect", short_run.bundle)
    assert done.exit_code == 0, done.stderr
    assert ": a bundle" in done.stdout and "tier" in done.stdout
    assert "int8 by channel" in done.stdout and "bits a number" in done.stdout
    assert "present, not verified; --key verifies it" in done.stdout
    damaged = bytearray(short_run.bundle.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (tmp_path / "damaged").write_bytes(damaged)
    refused = invoke("inspect", tmp_path / "damaged")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ") and isinstance(refused.exception, SystemExit)


@pytest.mark.slow
def test_bundles_are_signed_with_the_key_that_the_scenario_names(short_run: ShortRun, tmp_path: Path) -> None:
    other = Ed25519PrivateKey.generate().public_key()
    pem, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "other.pub.pem").write_bytes(other.public_bytes(pem, form))
    verified = invoke("inspect", short_run.bundle, "--key", short_run.folder / "key.pub.pem")
    refused = invoke("inspect", short_run.bundle, "--key", tmp_path / "other.pub.pem")
    assert verified.exit_code == 0 and "key.pub.pem" in verified.stdout
    assert refused.exit_code == 2 and "made or changed by somebody else" in refused.stderr
