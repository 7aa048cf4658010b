"""What `SparseFed` tells code that was written for another strategy of Flower's: what to write instead.

`SparseFed` takes FedAvg's arguments. Whoever comes from another strategy brings that one's own arguments; whoever comes
from Flower's API before messages (`server_fn`, NumPyClient) calls methods that no strategy of the Message API has; and
whoever wraps it for differential privacy gets none: Flower's wrappers clip and read ArrayRecords, and replies to
`SparseFed` hold encoded updates. All of these are refused by name, with the way that leads on.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection
from types import FrameType
from typing import ParamSpec

from flwr.serverapp.strategy import Strategy

from fedpress.compression.errors import FedpressError

P = ParamSpec("P")

_OPTIMIZER = "from fedpress.server.model import optimizers, and SparseFed(optimizer={})"
_ADAPTIVE = _OPTIMIZER.format("optimizers.adam(eta, beta_1, beta_2, tau)") + "; yogi takes the same, adagrad(eta, tau)"
_ROBUST = (
    "it is of {}, which compares or sorts whole updates entry by entry: with sparse ones most entries come"
    " from a single"
    " client, so there is nothing to compare. A bound on each update is there: wrappers.clipped on the clients"
)
_LEGACY = "{}: it is of Flower's API before messages; here it is {}"

INSTEAD = {
    "proximal_mu": "of FedProx. The term is the client's:"
    " strategy.start(train_config=ConfigRecord({'proximal-mu': mu})), and"
    " the app's train function reads message.content['config']['proximal-mu'] as with FedProx",
    "eta": f"of FedAdam, FedYogi and FedAdagrad: {_ADAPTIVE}",
    "eta_l": "of FedAdam, FedYogi and FedAdagrad, which do not use it: the clients' learning rate is in the app itself",
    "beta_1": f"of FedAdam and FedYogi: {_ADAPTIVE}",
    "beta_2": f"of FedAdam and FedYogi: {_ADAPTIVE}",
    "tau": f"of FedAdam, FedYogi and FedAdagrad: {_ADAPTIVE}",
    "server_learning_rate": f"of FedAvgM: {_OPTIMIZER.format('optimizers.sgd(server_learning_rate, server_momentum)')}",
    "server_momentum": f"of FedAvgM: {_OPTIMIZER.format('optimizers.sgd(server_learning_rate, server_momentum)')}",
    "beta": _ROBUST.format("FedTrimmedAvg"),
    "num_malicious_nodes": _ROBUST.format("Krum, MultiKrum and Bulyan"),
    "num_nodes_to_select": _ROBUST.format("MultiKrum"),
    "selection_rule": _ROBUST.format("Bulyan"),
    "client_learning_rate": "of QFedAvg, which weights clients by their loss: let the app answer with that"
    " weight, and name it"
    " in weighted_by_key",
    "q": "of QFedAvg: let the app answer with loss ** q times its examples, and name that metric in weighted_by_key",
    "train_loss_key": "of QFedAvg: let the app answer with the weight itself, and name it in weighted_by_key",
    "noise_multiplier": "of Flower's wrappers for differential privacy, which do not work with SparseFed",
    "clipping_norm": "of Flower's wrappers for differential privacy, which do not work with SparseFed; a bound"
    " on updates is"
    " wrappers.clipped on the clients",
    "fraction_fit": _LEGACY.format("fraction_fit", "fraction_train"),
    "min_fit_clients": _LEGACY.format("min_fit_clients", "min_train_nodes"),
    "min_evaluate_clients": _LEGACY.format("min_evaluate_clients", "min_evaluate_nodes"),
    "min_available_clients": _LEGACY.format("min_available_clients", "min_available_nodes"),
    "initial_parameters": _LEGACY.format("initial_parameters", "strategy.start(initial_arrays=ArrayRecord(...))"),
    "evaluate_fn": "an argument of start: strategy.start(evaluate_fn=...), which takes round and arrays",
    "on_fit_config_fn": _LEGACY.format("on_fit_config_fn", "strategy.start(train_config=...)"),
    "on_evaluate_config_fn": _LEGACY.format("on_evaluate_config_fn", "strategy.start(evaluate_config=...)"),
    "fit_metrics_aggregation_fn": _LEGACY.format("fit_metrics_aggregation_fn", "train_metrics_aggr_fn"),
    "evaluate_metrics_aggregation_fn": _LEGACY.format("evaluate_metrics_aggregation_fn", "evaluate_metrics_aggr_fn"),
    "accept_failures": _LEGACY.format("accept_failures", "always so: a bad reply costs its client the round"),
    "inplace": _LEGACY.format("inplace", "always so: updates are added up one by one"),
}
"""Arguments of Flower's other strategies, and what to write instead."""

LEGACY = frozenset(
    {"initialize_parameters", "configure_fit", "aggregate_fit", "evaluate", "num_fit_clients", "num_evaluation_clients"}
)
"""Methods of strategies before the Message API."""

_WRAPPERS = "DifferentialPrivacy"
"""How the names of Flower's wrappers begin; their own subclasses, too, are found by it."""

_HINTS = {
    "expects exactly one ArrayRecord": "a mod stands before compress(...) in the ClientApp's list, where it finds no"
    " weights any more: compress(...) must be the first",
    "fitins.": "a mod of flwr.client.mod stands in the ClientApp's list; those are for NumPyClient apps",
    "secaggplus": "SecAgg+ stands in the ClientApp's list, and does not work with SparseFed",
    "SizeMismatch": "the two sides have other layouts: give compress(...) and SparseFed(...) the same layout=",
    "LayoutMismatch": "the two sides have other layouts: give compress(...) and SparseFed(...) the same layout=",
    "another model?": "the two sides have other layouts: give compress(...) and SparseFed(...) the same layout=",
}
"""Likely mistakes behind a reply's error, by a part of its text."""


class ArgumentError(FedpressError, TypeError):
    """`SparseFed` was given an argument that it does not have."""


class LegacyError(FedpressError, AttributeError):
    """`SparseFed` was used through Flower's API before messages."""


class WrapperError(FedpressError):
    """A strategy around `SparseFed` cannot keep its promise."""


def explain_unknown(init: Callable[P, None]) -> Callable[P, None]:
    """Return an `__init__` that refuses arguments it does not have by name, with what to write instead.

    Args:
        init: The `__init__` of a strategy.
    """
    known = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def explaining(*args: P.args, **options: P.kwargs) -> None:
        unknown = [name for name in options if name not in known]
        if unknown:
            raise unknown_arguments(unknown, known)
        init(*args, **options)

    return explaining


def unknown_arguments(names: Collection[str], known: Collection[str]) -> ArgumentError:
    """Return the error for arguments that `SparseFed` does not have.

    >>> print(unknown_arguments(["fraction_fit"], []))
    SparseFed takes no 'fraction_fit': it is of Flower's API before messages; here it is fraction_train
    >>> print(unknown_arguments(["chekpoints"], ["checkpoints"]))
    SparseFed takes no 'chekpoints'; did you mean 'checkpoints'?

    Args:
        names: The arguments.
        known: Names of its own arguments.
    """
    lines = []
    for name in names:
        close = difflib.get_close_matches(name, known, 1)
        instead = INSTEAD[name].removeprefix(f"{name}: ") if name in INSTEAD else ""
        remark = (
            f": {instead}" if instead else f"; did you mean {close[0]!r}?" if close else ", nor do Flower's strategies"
        )
        lines.append(f"SparseFed takes no {name!r}{remark}")
    return ArgumentError("\n".join(lines))


def legacy(name: str) -> LegacyError:
    """Return the error for a method of a strategy before the Message API.

    Args:
        name: Name of the method.
    """
    return LegacyError(
        f"SparseFed has no {name!r}: that is a method of Flower's API before messages (server_fn, ServerAppComponents,"
        " start_server, workflows such as SecAgg+). Write app = ServerApp(), and under @app.main() a function"
        " that calls"
        " strategy.start(grid=grid, initial_arrays=ArrayRecord(...), num_rounds=...) (docs/how-to/flower-app.md)"
    )


def refuse_wrappers(strategy: Strategy, frame: FrameType | None) -> str:
    """Refuse to work inside one of Flower's wrappers for differential privacy.

    Such a wrapper is a strategy itself, and calls the hooks of the one inside. Nothing in the call tells who calls, so
    the callers are looked at.

    Args:
        strategy: The strategy inside.
        frame: Frame of the hook that was called.

    Returns:
        Name of the class of another strategy that calls, empty: there is none.

    Raises:
        WrapperError: A caller is such a wrapper.
    """
    outer = ""
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Strategy) and caller is not strategy:
            outer = type(caller).__name__
            wrapper = next((c.__name__ for c in type(caller).__mro__ if c.__name__.startswith(_WRAPPERS)), None)
            if wrapper:
                raise WrapperError(
                    f"{wrapper} does not work around {type(strategy).__name__}: it clips and reads the weights"
                    " in replies,"
                    " which hold encoded updates, so nothing would be clipped, and noise would be added for nothing."
                    " fedpress has no differential privacy yet; use Flower's FedAvg inside the wrapper, without"
                    " compress(...). A bound on what a client sends, without privacy, is wrappers.clipped"
                )
        frame = frame.f_back
    return outer


def calling_frame() -> FrameType | None:
    """Return the frame of the function that calls this one."""
    frame = inspect.currentframe()
    return frame.f_back if frame else None


def hint(detail: str) -> str:
    """Return the likely mistake behind a reply's error, empty where none is known.

    >>> hint("fixedclipping_mod expects exactly one ArrayRecord, but found 0 ArrayRecord(s).").split(",")[0]
    "a mod stands before compress(...) in the ClientApp's list"

    Args:
        detail: Text of the error.
    """
    return next((text for part, text in _HINTS.items() if part in detail), "")
