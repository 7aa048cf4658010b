"""Recipes: each is the chain of public parts that it says it is, step by step and byte by byte."""

from typing import Any

import numpy as np
import pytest

from fedpress.compression.encoders import encoder, recipes
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense, Sparse
from fedpress.compression.wire import payloads, positions, values

N, ROUNDS = 700, 5
LAYOUT = Layout((TensorSpec("a", (20, 30), "float32"), TensorSpec("b", (100,), "float32")))
MADE: dict[str, Encoder[Any]] = {
    name: recipe.make(**({"density": 0.05} if "density" in recipe.takes else {}))
    for name, recipe in recipes.RECIPES.items()
}


def update_of(round: int) -> Vector:
    return np.random.default_rng(round).standard_normal(N).astype(np.float32)


def run(chosen: Encoder[Any]) -> tuple[list[Vector], Any]:
    """Return what a client says in each round, all of it accepted, and the last state."""
    state, said = chosen.init(LAYOUT), []
    for round in range(ROUNDS):
        shared = SideInfo(LAYOUT, round)
        payload, _, state = chosen.encode(update_of(round), state, shared, round)
        said.append(encoder.decode(payload, shared).dense())
        state = chosen.acknowledge(state, True)
    return said, state


def top(asked: Vector, k: int) -> np.ndarray:
    return np.sort(np.argsort(-np.abs(asked), kind="stable")[:k])


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_runs_and_repeats_itself(name: str) -> None:
    first, _ = run(MADE[name])
    again, _ = run(MADE[name])
    np.testing.assert_array_equal(first, again)
    assert all(np.isfinite(one).all() and one.any() for one in first)


def ternary(asked: Vector, k: int) -> Vector:
    """The k largest entries as signs and their mean magnitude."""
    kept = top(asked, k)
    said = np.zeros(N, np.float32)
    said[kept] = np.sign(asked[kept]) * np.abs(asked[kept]).mean(dtype=np.float64)
    return said


def test_stc_by_hand() -> None:
    residual = np.zeros(N, np.float32)
    for round, said in enumerate(run(MADE["stc"])[0]):
        asked = update_of(round) + residual
        np.testing.assert_allclose(said, ternary(asked, 35), rtol=1e-6)
        residual = asked - said


def stepped(asked: Vector, k: int) -> Vector:
    """The k largest entries at the middle of steps that are as wide as an error of 8 % allows."""
    kept = top(asked, k)
    magnitudes = np.abs(asked[kept]).astype(np.float64)
    step = 0.08 * np.sqrt(12 * np.mean(magnitudes**2))
    steps = np.floor((magnitudes - magnitudes.min()) / step)
    said = np.zeros(N, np.float32)
    said[kept] = np.sign(asked[kept]) * (steps * step + np.mean(magnitudes - steps * step))
    return said


def test_fedpress_by_hand() -> None:
    """Top-k in steps with error feedback, and training starts ahead by the whole residual."""
    residual = np.zeros(N, np.float32)
    chosen = MADE["fedpress"]
    said, state = run(chosen)
    for round, one in enumerate(said):
        asked = update_of(round) + residual
        np.testing.assert_allclose(one, stepped(asked, 35), rtol=1e-5)
        residual = asked - one
    np.testing.assert_array_equal(chosen.offset(state), residual)


@pytest.mark.parametrize("max_norm", [None, 2.0])
def test_dgc_by_hand(max_norm: float | None) -> None:
    velocity, residual = np.zeros(N, np.float32), np.zeros(N, np.float32)
    for round, said in enumerate(run(recipes.dgc(0.05, 0.9, max_norm=max_norm))[0]):
        update = update_of(round)
        if max_norm is not None:
            update *= np.float32(max_norm / np.linalg.norm(update.astype(np.float64)))
        velocity = np.float32(0.9) * velocity + update
        residual = residual + velocity
        kept = np.concatenate([top(residual[:600], 30), 600 + top(residual[600:], 5)])
        expected = np.zeros(N, np.float32)
        expected[kept] = residual[kept]
        np.testing.assert_allclose(said, expected, rtol=1e-5, atol=1e-6)
        residual[kept], velocity[kept] = 0, 0


def test_dgc_warms_up() -> None:
    chosen, counts = recipes.dgc(0.01, warm_up_rounds=2), []
    state = chosen.init(LAYOUT)
    for round in range(4):
        payload, _, state = chosen.encode(update_of(round), state, SideInfo(LAYOUT, round), 0)
        counts.append(payloads.inspect(payload)["count"])
    assert counts == [175, 35, 7, 7]


def test_random_k_by_hand() -> None:
    residual = np.zeros(N, np.float32)
    for round, said in enumerate(run(MADE["random_k"])[0]):
        asked = update_of(round) + residual
        kept = positions.drawn(round, N, 35)
        expected = Sparse(kept, asked[kept], N).dense()
        np.testing.assert_array_equal(said, expected)
        residual = asked - said


@pytest.mark.parametrize(("name", "format"), [("fp16", values.FLOAT16), ("int8", values.INT8)])
def test_dense_formats_by_hand(name: str, format: values.ValueFormat) -> None:
    for round in range(ROUNDS):
        payload, *_ = MADE[name].encode(update_of(round), None, SideInfo(LAYOUT), 0)
        assert payload == payloads.pack(Dense(update_of(round)), LAYOUT, format).payload


def test_signsgd_by_hand() -> None:
    np.testing.assert_array_equal(run(MADE["signsgd"])[0], [np.sign(update_of(round)) for round in range(ROUNDS)])


def test_qsgd_by_hand() -> None:
    update, levels = update_of(1), 7
    said = encoder.decode(
        recipes.qsgd(4).encode(update.copy(), None, SideInfo(LAYOUT), 3).payload, SideInfo(LAYOUT)
    ).dense()
    scales = np.repeat([np.abs(update[:512]).max(), np.abs(update[512:]).max()], [512, N - 512]).astype(np.float64)
    drawn = np.random.default_rng(3).random(N)
    np.testing.assert_allclose(said, np.floor(update / scales * levels + drawn) * scales / levels, rtol=1e-6)


def test_terngrad_by_hand() -> None:
    update = update_of(1)
    said = encoder.decode(
        MADE["terngrad"].encode(update.copy(), None, SideInfo(LAYOUT), 3).payload, SideInfo(LAYOUT)
    ).dense()
    scales = np.repeat([np.abs(update[:600]).max(), np.abs(update[600:]).max()], [600, 100])
    drawn = np.random.default_rng(3).random(N) * scales < np.abs(update)
    np.testing.assert_array_equal(said, np.sign(update) * drawn * scales)


def test_eden_by_hand() -> None:
    """With the matrix written out: 1024 coordinates, one rotation, one bit."""
    update = update_of(1)
    payload, *_ = recipes.eden(1).encode(update.copy(), None, SideInfo(LAYOUT), 3)
    hadamard = np.ones((1, 1))
    for _ in range(10):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    signs = []
    for place in range(1024):
        mixed = (3 + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        signs.append(-1.0 if (mixed ^ mixed >> 31) >> 63 else 1.0)
    padded = np.concatenate([update, np.zeros(1024 - N)])
    rotated = hadamard @ (signs * padded) / 32
    levels = 0.798 * np.where(rotated > 0, 1, -1)
    expected = signs * (hadamard @ levels / 32) * (padded @ padded) / (rotated @ levels)
    np.testing.assert_allclose(encoder.decode(payload, SideInfo(LAYOUT)).dense(), expected[:N], rtol=1e-5, atol=1e-6)


def test_powersgd_by_hand() -> None:
    residual, right = np.zeros(N), np.random.default_rng(0).standard_normal((30, 2))
    for round, said in enumerate(run(recipes.powersgd(2))[0]):
        asked = update_of(round) + residual
        matrix = asked[:600].reshape(20, 30)
        left, _ = np.linalg.qr(matrix @ right)
        right = matrix.T @ left
        expected = np.concatenate([(left @ right.T).ravel(), asked[600:]])
        np.testing.assert_allclose(said, expected, atol=1e-4)
        residual = asked - said
