"""The generated code of the hub's protocol is that of the committed .proto, and its numbers stay what they are."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grpc_tools")

from fedpress.compression.messages import hub_pb2  # noqa: E402

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_what_is_committed_is_what_make_proto_writes(tmp_path: Path) -> None:
    outs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    source = ".pkg/fedpress/compression/messages/hub.proto"
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", ".pkg", *outs, source], cwd=ROOT, check=True)
    made = sorted((tmp_path / "fedpress" / "compression" / "messages").iterdir())
    assert [file.name for file in made] == ["hub_pb2.py", "hub_pb2.pyi", "hub_pb2_grpc.py"]
    for file in made:
        assert file.read_text() == (ROOT / "compression" / "messages" / file.name).read_text(), "run `make proto`"


def test_the_numbers_on_the_wire_stay_what_they_are() -> None:
    """Golden bytes: a device in the field has the numbers of its own build."""
    about = hub_pb2.Bundle(tier="phone", version=7, size=300, sha256=b"\x01" * 32, created=1)
    coded = b"\n\x05phone\x10\x07\x18\xac\x02\x22\x20" + b"\x01" * 32 + b"\x28\x01"
    assert about.SerializeToString() == coded
    assert (
        hub_pb2.Part(bundle=about, data=b"xy").SerializeToString()
        == b"\n" + bytes([len(coded)]) + coded + b"\x12\x02xy"
    )
    assert hub_pb2.GetRequest(tier="a", version=1, offset=2).SerializeToString() == b"\n\x01a\x10\x01\x18\x02"
    assert hub_pb2.ListRequest(tier="a", newest_only=True).SerializeToString() == b"\n\x01a\x10\x01"
    assert hub_pb2.ListReply(bundles=[about]).SerializeToString() == b"\n" + bytes([len(coded)]) + coded
    service = hub_pb2.DESCRIPTOR.services_by_name["Hub"]
    assert service.full_name == "fedpress.hub.v1.Hub"
    assert [method.name for method in service.methods] == ["ListBundles", "GetBundle"]
