"""Federated learning on Flower for links that are slow, metered or lossy.

    fedpress.simulate("digits", rounds=20)      a whole run on real data, with curves      fedpress[simulation]
    fedpress.load_run("runs/digits-...")        the same result of a run that is over      fedpress[simulation]

    fedpress.compress(encoder)                  a mod for a Flower ClientApp               fedpress[client]
    fedpress.SparseFed(...)                     the strategy for its ServerApp             fedpress[server]
    fedpress.Downlink(...)                      how the model goes down                    fedpress[server]

    fedpress.Task                               a model with its data, of your own         fedpress[simulation]

    fedpress.encode(update), fedpress.decode    an update as bytes and back                (nothing more)
    fedpress.FedpressError                      the base class of all errors               (nothing more)

Names come with what they need when they are first used, so `import fedpress` is light. The rest is in the four
packages: `fedpress.compression` (no Flower; torch only under `models`), `fedpress.client`, `fedpress.server` and
`fedpress.simulations`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpress.client.mod import compress as compress
    from fedpress.compression.codec import decode as decode
    from fedpress.compression.codec import encode as encode
    from fedpress.compression.errors import FedpressError as FedpressError
    from fedpress.compression.models.task import Task as Task
    from fedpress.server.model.versions import Downlink as Downlink
    from fedpress.server.strategies.sparse_fed import SparseFed as SparseFed
    from fedpress.simulations.api import load_run as load_run
    from fedpress.simulations.api import simulate as simulate

    __version__: str

__all__ = [
    "Downlink",
    "FedpressError",
    "SparseFed",
    "Task",
    "__version__",
    "compress",
    "decode",
    "encode",
    "load_run",
    "simulate",
]

_HOMES = {
    "Downlink": ("server.model.versions", "server"),
    "FedpressError": ("compression.errors", ""),
    "SparseFed": ("server.strategies.sparse_fed", "server"),
    "Task": ("compression.models.task", "simulation"),
    "compress": ("client.mod", "client"),
    "decode": ("compression.codec", ""),
    "encode": ("compression.codec", ""),
    "load_run": ("simulations.api", "simulation"),
    "simulate": ("simulations.api", "simulation"),
}
"""The module of each name, and the extra that it takes."""


def __getattr__(name: str) -> Any:
    """Return a public name, and keep it."""
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("fedpress")
    elif name in _HOMES:
        module, extra = _HOMES[name]
        try:
            found = getattr(import_module(f"fedpress.{module}"), name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if not extra or missing == "fedpress":
                raise
            from fedpress.compression import install

            raise ModuleNotFoundError(install.missing(f"fedpress.{name}", missing, extra), name=error.name) from error
    else:
        raise AttributeError(f"module 'fedpress' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names and the packages, loaded or not."""
    return sorted([*__all__, "client", "compression", "server", "simulations"])
