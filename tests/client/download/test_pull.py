"""Downloads from a real hub over real TLS: resumed, verified, refused, and never in the way of the old student."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import save_file
from tests.apps.hub_process import HubProcess
from torch import nn
from typer.testing import CliRunner

pytest.importorskip("grpc_health")

from fedpress.client.download import pull  # noqa: E402
from fedpress.compression import safetensors_files  # noqa: E402
from fedpress.compression.models.bundles import bases, writer
from fedpress.compression.models.quantization import quantize  # noqa: E402
from fedpress.server.hub import admission  # noqa: E402
from fedpress.server.publishing.store import ModelStore  # noqa: E402
from fedpress.simulations.__main__ import main  # noqa: E402
from fedpress.simulations.deploy import keys  # noqa: E402

pytestmark = pytest.mark.slow
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()


def made(version: int, tier: str = "phone", width: int = 8, signed: bool = False, seed: int = 0) -> bytes:
    torch.manual_seed(seed)
    model = nn.Linear(width, width)
    return writer.save(
        model, quantize.quantize(model), torch.zeros(1, width), task="line", tier=tier, version=version, metrics={},
        private_key=b"k" * 32 if signed else None, entropy_coded=False,
    )  # fmt: skip


class World(NamedTuple):
    folder: Path
    store: ModelStore
    keys: keys.Folder
    token: str
    hub: HubProcess

    def at(self, **changes: object) -> pull.HubConnection:
        given = {"address": self.hub.address, "ca": self.keys.ca, "token": self.token, "stall": 20.0}
        return pull.HubConnection(**{**given, **changes})  # type: ignore[arg-type]

    @property
    def tls(self) -> list[object]:
        return ["--certificate", self.keys.server, "--key", self.keys.server_key]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A hub with TLS and tokens, and two tiers."""
    folder = tmp_path_factory.mktemp("hub")
    own = keys.init(folder / "keys", ["127.0.0.1"], days=1)
    token = admission.add_token(folder / "tokens", "tester")
    store = ModelStore(folder / "store")
    store.put(made(3), tier="phone", version=3)
    store.put(made(3, "watch", signed=True), tier="watch", version=3)
    options = ["--tokens", folder / "tokens", "--requests", 10_000]
    tls = ["--certificate", own.server, "--key", own.server_key]
    with HubProcess(folder / "store", *tls, *options) as hub:
        yield World(folder, store, own, token, hub)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def command(world: World, *arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(
        main,
        ["pull", "--hub", world.hub.address, "--ca", str(world.keys.ca), *map(str, arguments)],
        env={"FEDPRESS_TOKEN": world.token},
    )
    return done.exit_code, done.output


def test_the_newest_is_fetched_once(world: World, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    first = pull.pull(world.at(), "phone", tmp_path / "new", on_progress=lambda *at: seen.append(at))
    assert first == (tmp_path / "new" / "phone.fpb", 3, len(made(3)), len(made(3)), True)
    assert first.path.read_bytes() == made(3)
    assert seen[0] == (0, first.size) and seen[-1] == (first.size, first.size)
    assert names(tmp_path / "new") == {"phone.fpb", ".phone.lock"}
    written = first.path.stat().st_mtime_ns
    again = pull.pull(world.at(), "phone", tmp_path / "new")
    assert (again.received, again.changed, again.version) == (0, False, 3)
    assert first.path.stat().st_mtime_ns == written


def test_a_student_that_was_damaged_on_the_disk_is_fetched_again(world: World, tmp_path: Path) -> None:
    path = pull.pull(world.at(), "phone", tmp_path).path
    path.write_bytes(path.read_bytes()[:-3])
    assert pull.pull(world.at(), "phone", tmp_path).changed and path.read_bytes() == made(3)


def test_the_command_says_what_happened(world: World, tmp_path: Path) -> None:
    assert command(world, "--tier", "phone", "--out", tmp_path) == (
        0, f"{tmp_path}/phone.fpb: version 3, verified; {len(made(3))} bytes downloaded\n"
    )  # fmt: skip
    code, said = command(world, "--tier", "phone", "--out", tmp_path)
    assert code == 0 and "version 3 is the newest, and it is here already" in said


def test_neither_torch_nor_flower_is_imported(world: World, tmp_path: Path) -> None:
    script = (
        "import sys; from fedpress.simulations.__main__ import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'flwr', 'onnx') if name in sys.modules])"
    )
    arguments = ["pull", "--hub", world.hub.address, "--ca", str(world.keys.ca), "--tier", "phone"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=tmp_path, env={**os.environ, "FEDPRESS_TOKEN": world.token}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("downloaded\n[]\n") and (tmp_path / "phone.fpb").exists()
    assert done.stderr == ""


# --- refused ---------------------------------------------------------------------------------------------------------


def test_an_unknown_tier_names_those_that_exist(world: World, tmp_path: Path) -> None:
    code, said = command(world, "--tier", "fone", "--out", tmp_path)
    assert code == 6 and "no tier 'fone'; it has: phone, watch" in said


def test_no_hub_there(world: World, tmp_path: Path) -> None:
    waits: list[tuple[str, float]] = []
    with pytest.raises(pull.HubUnreachable, match="Connection refused; is it running"):
        pull.pull(world.at(address="127.0.0.1:1"), "phone", tmp_path, retries=1, on_wait=lambda *at: waits.append(at))
    ((_, seconds),) = waits
    assert 0.5 <= seconds <= 1
    code, said = command(world, "--tier", "phone", "--out", tmp_path, "--hub", "127.0.0.1:1", "--retries", "0")
    assert code == 3 and "Traceback" not in said


def test_a_certificate_of_somebody_else(world: World, tmp_path: Path) -> None:
    other = keys.init(tmp_path / "other", ["127.0.0.1"], days=1)
    with pytest.raises(pull.NotTrusted, match="it is of another authority than .*ca.crt"):
        pull.pull(world.at(ca=other.ca), "phone", tmp_path / "out")
    code, said = command(world, "--tier", "phone", "--out", tmp_path / "out", "--ca", other.ca)
    assert code == 4 and "is not trusted" in said
    assert names(tmp_path / "out") == {".phone.lock"}


def test_a_certificate_for_another_name(world: World, tmp_path: Path) -> None:
    with pytest.raises(pull.NotTrusted, match="it is not for 0.0.0.0"):
        pull.pull(world.at(address=f"0.0.0.0:{world.hub.port}"), "phone", tmp_path)


def test_a_hub_with_tls_asked_without_and_the_other_way(world: World, tmp_path: Path) -> None:
    with pytest.raises(pull.HubUnreachable, match="does it want TLS"):
        pull.pull(world.at(ca=None, insecure=True), "phone", tmp_path, retries=0)
    with HubProcess(world.store.folder, "--insecure") as plain:
        with pytest.raises(pull.HubUnreachable, match="does not speak TLS as expected"):
            pull.pull(world.at(address=plain.address), "phone", tmp_path, retries=0)


@pytest.mark.parametrize(
    ("token", "said"), [(None, "wants a token.*FEDPRESS_TOKEN"), ("fph_wrong", "mistyped, or rev")]
)
def test_without_the_right_token(world: World, tmp_path: Path, token: str | None, said: str) -> None:
    with pytest.raises(pull.NotAdmitted, match=said):
        pull.pull(world.at(token=token), "phone", tmp_path)


def test_a_revoked_token_and_a_new_one_count_at_once(world: World, tmp_path: Path) -> None:
    tokens = world.folder / "tokens"
    guest = admission.add_token(tokens, "guest")
    assert pull.pull(world.at(token=guest), "phone", tmp_path).changed
    tokens.write_text("".join(line for line in tokens.read_text().splitlines(True) if not line.startswith("guest ")))
    with pytest.raises(pull.NotAdmitted) as caught:
        pull.pull(world.at(token=guest), "phone", tmp_path)
    assert caught.value.exit_code == 5
    assert not pull.pull(world.at(), "phone", tmp_path).changed


def test_clients_certificates(world: World, tmp_path: Path) -> None:
    ours, others = (keys.init(tmp_path / name, ["localhost"], days=1) for name in ("devices", "strangers"))
    good, bad = keys.client(ours.path, "sensor", 1), keys.client(others.path, "stranger", 1)
    with HubProcess(world.store.folder, *world.tls, "--client-ca", ours.ca) as hub:
        here = {"address": hub.address, "token": None}
        found = pull.pull(world.at(**here, certificate=good[0], key=good[1]), "phone", tmp_path / "out")
        assert found.changed
        for pair, said in ((None, "none was given"), (bad, "does not know that of this device")):
            given = {"certificate": pair[0], "key": pair[1]} if pair else {}
            with pytest.raises(pull.NotTrusted, match=said):
                pull.pull(world.at(**here, **given), "phone", tmp_path / "out", retries=0)


def test_what_is_asked_for_wrongly(world: World, tmp_path: Path) -> None:
    for wrong in ({"address": "hub"}, {"address": "hub:0"}, {"token": "a\nb"}, {"certificate": tmp_path}):
        with pytest.raises(pull.PullError):
            world.at(**wrong)
    with pytest.raises(pull.PullError, match="cannot read .*none.pem"):
        pull.pull(world.at(ca=tmp_path / "none.pem"), "phone", tmp_path)
    for tier in ("../phone", "a/b", "", ".", "x" * 65):
        with pytest.raises(pull.PullError, match="at most 64"):
            pull.pull(world.at(), tier, tmp_path)


# --- signatures, tiers, versions -------------------------------------------------------------------------------------


def test_signatures(world: World, tmp_path: Path) -> None:
    assert pull.pull(world.at(), "watch", tmp_path, public_key=PUBLIC).changed
    for tier, key, said in (("phone", PUBLIC, "no signature"), ("watch", b"x" * 32, "not by the key")):
        out = tmp_path / tier / key.hex()[:4]
        with pytest.raises(pull.DamagedDownload, match=said):
            pull.pull(world.at(), tier, out, public_key=key)
        assert names(out) == {f".{tier}.lock"}
    with pytest.raises(pull.DamagedDownload, match="not by the key"):  # what is here already is held to the key, too
        pull.pull(world.at(), "watch", tmp_path, public_key=b"x" * 32)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no bundle at all", "is this another kind of file"),
        (made(5, "watch", signed=True), "version 5 of tier 'watch' as version 5 of 'phone'"),
        (made(4), "version 4 of tier 'phone' as version 5"),
    ],
    ids=["garbage", "another tier", "another version"],
)
def test_a_file_in_the_wrong_place_is_refused_and_the_old_one_stays(tmp_path: Path, data: bytes, said: str) -> None:
    store = ModelStore(tmp_path / "store")
    store.put(made(3), tier="phone", version=3)
    with HubProcess(store.folder, "--insecure") as hub:
        at = pull.HubConnection(hub.address, insecure=True)
        path = pull.pull(at, "phone", tmp_path / "out").path
        store.put(data, tier="phone", version=5)
        time.sleep(1.1)
        with pytest.raises(pull.DamagedDownload, match=said):
            pull.pull(at, "phone", tmp_path / "out")
    assert path.read_bytes() == made(3) and names(path.parent) == {"phone.fpb", ".phone.lock"}


def test_an_older_version_needs_to_be_asked_for(world: World, tmp_path: Path) -> None:
    path = tmp_path / "phone.fpb"
    path.write_bytes(made(9))
    with pytest.raises(pull.OlderVersion, match="is version 9, and the hub's newest is 3") as caught:
        pull.pull(world.at(), "phone", tmp_path)
    assert caught.value.exit_code == 9 and path.read_bytes() == made(9)
    assert pull.pull(world.at(), "phone", tmp_path, allow_older=True).version == 3
    path.write_bytes(made(3, seed=1))  # the same version, from another run
    assert pull.pull(world.at(), "phone", tmp_path).changed and path.read_bytes() == made(3)


# --- links that break ------------------------------------------------------------------------------------------------


class Slow(NamedTuple):
    """A pull under way in a thread from a hub that sends a megabyte in three seconds or so."""

    store: ModelStore
    out: Path
    progress: list[int]
    waits: list[str]
    result: list[object]
    thread: threading.Thread

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + 60
        while (self.progress or [0])[-1] < count:
            assert time.monotonic() < until and self.thread.is_alive()
            time.sleep(0.02)

    def end(self) -> object:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.result[0]


BIG = made(7, width=1000)
RATE = 300_000


def start_slow(tmp_path: Path, hub: HubProcess, **more: object) -> Slow:
    progress: list[int] = []
    waits: list[str] = []
    result: list[object] = []

    def work() -> None:
        try:
            result.append(
                pull.pull(
                    pull.HubConnection(hub.address, insecure=True, stall=10),
                    "phone", tmp_path / "out",
                    on_progress=lambda done, _: progress.append(done),
                    on_wait=lambda reason, _: waits.append(reason), **more,  # type: ignore[arg-type]
                )
            )  # fmt: skip
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return Slow(ModelStore(tmp_path / "store"), tmp_path / "out", progress, waits, result, thread)


@pytest.fixture()
def slow_store(tmp_path: Path) -> Path:
    ModelStore(tmp_path / "store").put(BIG, tier="phone", version=7)
    return tmp_path / "store"


def test_the_hub_is_killed_and_comes_back_and_no_byte_is_sent_twice(slow_store: Path, tmp_path: Path) -> None:
    assert len(BIG) > 1_000_000
    with HubProcess(slow_store, "--insecure", "--rate", RATE) as first:
        slow = start_slow(tmp_path, first)
        slow.wait_for(400_000)
        first.kill()
        with HubProcess(slow_store, "--insecure", "--rate", RATE, port=first.port):
            found = slow.end()
    assert isinstance(found, pull.Pulled), found
    assert found.received == found.size == len(BIG)  # counted over both hubs
    assert slow.waits and found.path.read_bytes() == BIG
    assert slow.progress == sorted(slow.progress)


def test_a_pull_that_is_killed_goes_on_in_the_next_one(slow_store: Path, tmp_path: Path) -> None:
    with HubProcess(slow_store, "--insecure", "--rate", RATE) as hub:
        command = [sys.executable, "-m", "fedpress.simulations", "pull", "--insecure", "--hub", hub.address]
        process = subprocess.Popen([*command, "--tier", "phone", "--out", str(tmp_path / "out")])
        until = time.monotonic() + 60
        while not (sizes := [p.stat().st_size for p in tmp_path.glob("out/.phone-*.part")]) or sizes[0] < 400_000:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
        (part,) = tmp_path.glob("out/.phone-*.part")
        there = part.stat().st_size
        found = start_slow(tmp_path, hub).end()
    assert isinstance(found, pull.Pulled) and found.received == len(BIG) - there
    assert found.path.read_bytes() == BIG and names(found.path.parent) == {"phone.fpb", ".phone.lock"}


def test_two_pulls_into_one_folder_do_not_mix(slow_store: Path, tmp_path: Path) -> None:
    with HubProcess(slow_store, "--insecure", "--rate", RATE) as hub:
        slow = start_slow(tmp_path, hub)
        slow.wait_for(1)
        second = start_slow(tmp_path, hub).end()
        assert isinstance(second, pull.PullError) and "another pull" in str(second)
        assert isinstance(slow.end(), pull.Pulled)


def test_a_version_that_is_published_meanwhile_is_next_and_after_a_break_comes_first(
    slow_store: Path, tmp_path: Path
) -> None:
    with HubProcess(slow_store, "--insecure", "--rate", RATE) as hub:
        slow = start_slow(tmp_path, hub)
        slow.wait_for(400_000)
        slow.store.put(made(8), tier="phone", version=8)
        found = slow.end()
        assert isinstance(found, pull.Pulled) and found.version == 7  # not thrown away half-way
        found = start_slow(tmp_path, hub).end()
        assert isinstance(found, pull.Pulled) and found.version == 8
        # The same with a break: the part of version 9 is dropped for version 10.
        slow.store.put(made(9, width=1000), tier="phone", version=9)
        time.sleep(1.1)
        slow = start_slow(tmp_path, hub)
        slow.wait_for(400_000)
        slow.store.put(made(10), tier="phone", version=10)
        hub.kill()
        with HubProcess(slow_store, "--insecure", port=hub.port):
            found = slow.end()
    assert isinstance(found, pull.Pulled) and found.version == 10
    assert found.path.read_bytes() == made(10) and names(found.path.parent) == {"phone.fpb", ".phone.lock"}


def test_a_part_that_rotted_on_the_disk_costs_one_more_download(slow_store: Path, tmp_path: Path) -> None:
    import hashlib

    out = tmp_path / "out"
    out.mkdir()
    part = out / f".phone-0000000007-{hashlib.sha256(BIG).hexdigest()}.part"
    part.write_bytes(b"\0" * 500_000)
    with HubProcess(slow_store, "--insecure") as hub:
        slow = start_slow(tmp_path, hub)
        found = slow.end()
    assert isinstance(found, pull.Pulled) and found.path.read_bytes() == BIG
    assert found.received == 2 * len(BIG) - 500_000 and "damaged" in slow.waits[0]


def test_a_file_beyond_the_limit_of_the_disk(slow_store: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk: a write fails in the middle of the download."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "phone.fpb").write_bytes(made(3))
    with HubProcess(slow_store, "--insecure") as hub:
        line = f"ulimit -f 300; exec '{sys.executable}' -m fedpress.simulations pull --insecure --hub {hub.address} \
            --tier phone --out '{out}'"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert done.returncode == 8 and "the previous student is unchanged" in done.stderr, done
        assert "Traceback" not in done.stderr and (out / "phone.fpb").read_bytes() == made(3)
        (part,) = out.glob(".phone-*.part")
        assert part.stat().st_size == 300 * 1024
        found = start_slow(tmp_path, hub).end()
    assert isinstance(found, pull.Pulled) and found.received == len(BIG) - 300 * 1024


def test_a_full_disk(slow_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", out], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        (out / "phone.fpb").write_bytes(made(3))
        with HubProcess(slow_store, "--insecure") as hub:
            found = start_slow(tmp_path, hub).end()
        assert isinstance(found, pull.CannotWrite) and "has room for" in str(found)
        assert (out / "phone.fpb").read_bytes() == made(3)
    finally:
        subprocess.run(["umount", out], check=True)


def test_watching_takes_each_new_version(world: World, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    store.put(made(1), tier="phone", version=1)
    with HubProcess(store.folder, "--insecure") as hub:
        command = [sys.executable, "-m", "fedpress.simulations", "pull", "--insecure", "--hub", hub.address]
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(
                [*command, "--tier", "phone", "--out", str(tmp_path / "out"), "--watch", "1"], stdout=said
            )
        try:
            for version in (1, 2):
                if version > 1:
                    store.put(made(version), tier="phone", version=version)
                until = time.monotonic() + 30
                while f"version {version}, verified" not in (tmp_path / "said").read_text():
                    assert time.monotonic() < until and process.poll() is None
                    time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    assert (tmp_path / "out" / "phone.fpb").read_bytes() == made(2)


def test_an_adapter_is_put_together_with_its_base_or_waits_for_it(world: World, tmp_path: Path) -> None:
    """Another base costs no second download, and leaves the earlier student; the right one is found from then on."""
    right, wrong = (tmp_path / name for name in ("right.safetensors", "wrong.safetensors"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 300), nn.Linear(300, 2))
    model[0].requires_grad_(False)
    save_file({name: tensor.detach() for name, tensor in model[0].named_parameters()}, right)
    save_file({"weight": torch.ones(300, 8), "bias": torch.ones(300)}, wrong)
    base = bases.BaseFiles(right, safetensors_files.sha256(right))
    data = writer.save(
        model, quantize.quantize(model, kept=["0.weight", "0.bias"]), torch.zeros(1, 8), task="t", tier="laptop",
        version=1, metrics={}, base=base,
    )  # fmt: skip
    assert len(data) < right.stat().st_size / 4
    world.store.put(data, tier="laptop", version=1)
    time.sleep(1.1)  # a listing lives for a second
    out = tmp_path / "out"
    for given in ([], ["--base", wrong]):
        code, said = command(world, "--tier", "laptop", "--out", out, *given)
        assert code == 10 and base.sha256 in " ".join(said.split()) and not (out / "laptop.fpb").exists()
    found = pull.pull(world.at(), "laptop", out, base=right)
    assert found.changed and found.received == 0 and (out / "laptop.fpb").read_bytes() == data
    assert (out / "bases" / base.sha256).resolve() == right
    assert not pull.pull(world.at(), "laptop", out).changed
    right.rename(tmp_path / "moved.safetensors")
    with pytest.raises(pull.BaseMissing, match=base.sha256):
        pull.pull(world.at(), "laptop", out)
    assert not pull.pull(world.at(), "laptop", out, base=tmp_path / "moved.safetensors").changed
    assert (out / "bases" / base.sha256).exists()
