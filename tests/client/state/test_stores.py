"""Client state survives, and damaged state is never used."""

import resource
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedpress.client.state import stores as state_stores
from fedpress.client.state.stores import ContextStore, DamagedState, FolderStore, StateError, Stored
from fedpress.compression.encoders import (
    cafe,
    decay,
    ef21,
    encoder,
    float16_residual,
    momentum,
    recipes,
    selection,
)
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values


class Inner(NamedTuple):
    mean: Any


class Outer(NamedTuple):
    inner: Any
    residual: Any


def context(**node_config: Any) -> Context:
    return Context(run_id=1, node_id=77, node_config=node_config, state=RecordDict(), run_config={})


def stored() -> Stored:
    arrays = {
        "residual": np.arange(6, dtype=np.float32).reshape(2, 3),
        "sent": np.array([], np.int64),
        "one": np.array(3.0),
    }
    return Stored(arrays, {"ticket": "4", "layout": "123"})


def stores(folder: Path) -> list[state_stores.Store]:
    return [ContextStore(context(), "home"), FolderStore(folder, "home", 3)]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    for store in stores(tmp_path):
        assert store.load() is None
        store.save(Stored({"residual": np.ones(3)}, {"ticket": "1"}))
        store.save(stored())
        found = store.load()
        assert found is not None
        assert found.meta == {"ticket": "4", "layout": "123"}
        assert found.arrays.keys() == stored().arrays.keys()
        for name, array in stored().arrays.items():
            np.testing.assert_array_equal(found.arrays[name], array)
            assert found.arrays[name].dtype == array.dtype
            assert found.arrays[name].flags.writeable


def test_federations_and_clients_do_not_share_state(tmp_path: Path) -> None:
    here = context()
    ContextStore(here, "home").save(stored())
    assert ContextStore(here, "away").load() is None
    FolderStore(tmp_path, "home", 3).save(stored())
    assert FolderStore(tmp_path, "home", 4).load() is None
    assert FolderStore(tmp_path, "away", 3).load() is None


def test_a_hostile_name_stays_in_the_folder_and_similar_names_stay_apart(tmp_path: Path) -> None:
    names = ["../../etc", "..", "a/b", "a_b", "x" * 300, ""]
    paths = [FolderStore(tmp_path, name, 0).path for name in names]
    assert len(set(paths)) == len(names)
    for path in paths:
        assert path.resolve().is_relative_to(tmp_path.resolve())
        FolderStore(tmp_path, names[paths.index(path)], 0).save(stored())


def test_the_node_configuration_chooses_the_home(tmp_path: Path) -> None:
    assert isinstance(state_stores.open_store(context(), "home"), ContextStore)
    chosen = state_stores.open_store(context(**{"state-folder": str(tmp_path), "partition-id": 5}), "home")
    assert isinstance(chosen, FolderStore)
    assert chosen.path.name == "client-5.safetensors"
    assert state_stores.client_index(context()) == 77


def test_any_damage_to_the_file_is_found(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, "home", 0)
    store.save(stored())
    good = store.path.read_bytes()
    for position in range(0, len(good), 3):
        for bad in (good[:position], good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :]):
            store.path.write_bytes(bad)
            with pytest.raises(DamagedState, match="cannot be used.*is now client-0.safetensors.damaged"):
                store.load()
            assert store.load() is None
            aside = store.path.with_name("client-0.safetensors.damaged")
            assert aside.read_bytes() == bad  # kept for whoever wants to look
            aside.unlink()


def test_a_second_damaged_file_does_not_replace_the_first(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, "home", 0)
    store.path.parent.mkdir()
    for number in (b"1", b"2"):
        store.path.write_bytes(number)
        with pytest.raises(DamagedState):
            store.load()
    assert {path.name: path.read_bytes() for path in store.path.parent.iterdir()} == {
        "client-0.safetensors.damaged": b"1",
        "client-0.safetensors.damaged-2": b"2",
    }


def test_what_cannot_be_read_is_left_where_it_is(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, "home", 0)
    store.path.mkdir(parents=True)  # as good as a file without permission, also for root
    with pytest.raises(StateError, match="cannot read the client's state"):
        store.load()
    assert store.path.is_dir()


def test_a_disk_that_is_full_leaves_the_last_good_state(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, "home", 0)
    store.save(stored())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the write fails half-way, as on a full disk
    try:
        with pytest.raises(StateError, match="last good state is untouched"):
            store.save(Stored({"residual": np.zeros(9000)}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = store.load()
    assert found is not None and found.meta["ticket"] == "4"
    assert list(store.path.parent.iterdir()) == [store.path]


def test_states_are_flattened_by_path_and_restored() -> None:
    full = Outer(Inner(np.arange(3.0)), np.ones(2, np.float32))
    flat = state_stores.flatten_state(full)
    assert list(flat) == ["inner.mean", "residual"]
    back = state_stores.restore_state(Outer(Inner(np.zeros(3)), np.zeros(2, np.float32)), flat)
    assert isinstance(back, Outer) and isinstance(back.inner, Inner)
    np.testing.assert_array_equal(back.inner.mean, full.inner.mean)
    assert state_stores.flatten_state(None) == {} and state_stores.restore_state(None, {}) is None
    assert list(state_stores.flatten_state(Outer(None, np.ones(1)))) == ["residual"]


def test_the_state_of_another_encoder_is_refused() -> None:
    with pytest.raises(StateError, match="made by another encoder"):
        state_stores.restore_state(Outer(None, np.zeros(2, np.float32)), {"residual": np.zeros(2, np.float64)})
    with pytest.raises(TypeError, match="NamedTuple"):
        state_stores.flatten_state(Outer(None, [1, 2]))


CHAINS: dict[str, encoder.Encoder[Any]] = {
    **{
        name: made.make(**({"density": 0.1} if "density" in made.takes else {}))
        for name, made in recipes.RECIPES.items()
    },
    "decayed": decay.decayed(recipes.stc(0.1), 0.9, max_age=3),
    "decayed without a cap": decay.decayed(recipes.stc(0.1), 0.9),
    "ef21": ef21.ef21(encoder.sparse(selection.top_k(0.1), values.FLOAT16)),
    "half": float16_residual.half_precision(recipes.default(0.1)),
    "cafe": cafe.aggregate_feedback(encoder.dense()),
    "all together": momentum.momentum_corrected(decay.decayed(recipes.default(0.1), 0.9, max_age=3)),
}


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_every_encoder_goes_on_from_its_file_as_if_nothing_had_been(tmp_path: Path, name: str, accepted: bool) -> None:
    layout = Layout((TensorSpec("a", (8, 9), "float32"), TensorSpec("b", (5,), "float32")))
    chosen, store = CHAINS[name], FolderStore(tmp_path, "fed", 0)
    payloads = []
    for stored in (False, True):
        current = chosen.init(layout)
        for round in range(6):
            update = np.random.default_rng(round).standard_normal(layout.size).astype(np.float32)
            shared = SideInfo(layout, round)
            payload, _, current = chosen.encode(update, current, shared, round)
            if stored:
                store.save(Stored(state_stores.flatten_state(current), {}))
                found = store.load()
                assert found is not None
                current = state_stores.restore_state(chosen.init(layout), found.arrays)
            current = chosen.acknowledge(current, accepted or round % 2 > 0)
        payloads.append(payload)
    assert payloads[0] == payloads[1]
