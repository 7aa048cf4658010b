"""`import fedpress`: light, complete, and what it names exists."""

import subprocess
import sys

import numpy as np
import pytest

import fedpress
from fedpress.compression import install


def imported(code: str) -> set[str]:
    """Return the top-level modules that a new interpreter has loaded after some code."""
    report = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", report], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_importing_it_loads_nothing_but_the_standard_library() -> None:
    others = imported("import fedpress; dir(fedpress)") - sys.stdlib_module_names - imported("pass")
    assert others == {"fedpress"}


def test_the_codec_loads_numpy_alone() -> None:
    others = imported("import fedpress; fedpress.decode(fedpress.encode([1, 2]), like=[0, 0]); fedpress.__version__")
    assert others - sys.stdlib_module_names - imported("pass") == {"fedpress", "numpy"}


@pytest.mark.parametrize("name", fedpress.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(fedpress, name) is not None
    assert name in dir(fedpress)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'simulte'"):
        fedpress.simulte  # noqa: B018


@pytest.mark.parametrize(("name", "module", "extra"), [("compress", "flwr", "client"), ("Task", "torch", "simulation")])
def test_a_missing_extra_is_named(name: str, module: str, extra: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; import fedpress; fedpress.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"fedpress.{name} needs {module}, which is not installed: {install.command(extra)}" in done.stderr


def test_encode_and_decode_named_arrays() -> None:
    weights = {"weight": np.linspace(-1, 1, 200, dtype=np.float32).reshape(20, 10), "bias": np.zeros(10, np.float64)}
    payload = fedpress.encode(weights, density=0.1, values="float32")
    found = fedpress.decode(payload, like=weights)
    kept = found["weight"] != 0
    assert kept.sum() == 21 and (found["weight"][kept] == weights["weight"][kept]).all()
    assert found["bias"].dtype == np.float64 and not found["bias"].any()
    with pytest.raises(fedpress.FedpressError):
        fedpress.decode(payload, like={"weight": weights["weight"]})


def test_scope_ranks_within_each_array() -> None:
    arrays = {"large": np.full(10, 9, np.float32), "small": np.arange(1, 11, dtype=np.float32) / 100}
    every = fedpress.decode(fedpress.encode(arrays, 0.1, values="float32", scope="layer"), like=arrays)
    assert [int((array != 0).sum()) for array in every.values()] == [1, 1]
    ranked = fedpress.decode(fedpress.encode(arrays, 0.1, values="float32"), like=arrays)
    assert [int((array != 0).sum()) for array in ranked.values()] == [2, 0]
