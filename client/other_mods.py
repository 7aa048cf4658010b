"""What stands inside `compress(...)` in a ClientApp: other mods, and the way in which the app itself is written.

A mod gets the next one as a function, `call_next`, which holds the rest of the chain in its closure. From there the
mods can be read that would make a promise which compression does not keep:

* Clipping inside `compress` bounds what training adds; what is sent has the residual of earlier rounds added to it.
* Secure aggregation sums dense vectors, and masks them; neither fits an update whose entries are each client's own.

`LocalDpMod` inside keeps its promise: what is sent is made of nothing but what it has clipped and noised. Outside of
`compress` a mod that reads or changes the weights finds none. Flower's then answer with an error that the server cannot
match to its order, so that it waits for the whole of its timeout; they are looked for among the callers.
"""

from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from fedpress.compression.errors import FedpressError

_CLIPPING = (
    "it bounds what one round of training adds, not what is sent: error feedback adds what earlier rounds kept back."
    " Use wrappers.clipped (fedpress.compression.encoders) in its place: inside error_feedback it bounds what"
    " is sent, around"
    " it what training adds. That is a bound and not privacy: Flower's differential privacy does not work with"
    " SparseFed"
)
_SECURE_AGGREGATION = (
    "secure aggregation adds up dense vectors of masked integers, and an update of fedpress holds other"
    " entries for each"
    " client: use Flower's FedAvg and its SecAgg+ workflow without compress(...), or compress(...) without it"
)
REFUSED = {
    "fixedclipping_mod": _CLIPPING,
    "adaptiveclipping_mod": _CLIPPING,
    "secagg_mod": _SECURE_AGGREGATION,
    "secaggplus_mod": _SECURE_AGGREGATION,
}
"""Flower's mods that do not keep their promise inside `compress`, and why."""

_OUTSIDE = {*REFUSED, "LocalDpMod"}
"""Flower's mods that find no weights outside of `compress`."""

_DEPTH = 64


class ModError(FedpressError):
    """The ClientApp has a mod, or is written in a way, that cannot work with `compress`."""


def check(call_next: Callable[..., Any]) -> None:
    """Refuse what cannot work inside `compress`.

    Args:
        call_next: What `compress` calls to get the application's answer.

    Raises:
        ModError: There is such a mod, or the app is a `client_fn` of a `NumPyClient` or `Client`.
    """
    for function in _chain(call_next):
        name = getattr(function, "__name__", "")
        if name in REFUSED and str(getattr(function, "__module__", "")).startswith("flwr."):
            raise ModError(f"{name} stands inside compress(...) among the mods: {REFUSED[name]}")
        if name == "ffn" and "client_fn" in getattr(getattr(function, "__code__", None), "co_freevars", ()):
            raise ModError(
                "the ClientApp is made from a client_fn (a NumPyClient or Client), and compress(...) works"
                " with Flower's"
                " Message API: write app = ClientApp(mods=[compress(...)]) and a function under @app.train() that takes"
                " message.content['arrays'] and answers with an ArrayRecord and a MetricRecord with 'num-examples'"
                " (docs/how-to/flower-app.md)"
            )


def check_outside(frame: FrameType | None) -> None:
    """Refuse mods of Flower's outside of `compress` that read the weights of an answer.

    Args:
        frame: Frame of the function that they call.

    Raises:
        ModError: There is such a mod. It must not be caught on the way out: no answer gets through that mod.
    """
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("flwr."):
            name = frame.f_code.co_name
            if name == "__call__":
                name = type(frame.f_locals.get("self")).__name__
            if name in _OUTSIDE:
                raise ModError(
                    f"{name} stands before compress(...) among the mods, where it finds no weights in the answer, but"
                    f" an encoded update: compress(...) must be the first. {_inside(name)}"
                )
        frame = frame.f_back


def _inside(name: str) -> str:
    return f"Nor would it do behind it: {REFUSED[name]}" if name in REFUSED else "Behind it, it keeps its promise"


def _chain(first: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield a function and the functions that it holds: in closures, as `functools.partial` or under a decorator."""
    waiting, seen = [first], set[int]()
    while waiting and len(seen) < _DEPTH:
        function = waiting.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        yield function
        held = [getattr(function, "__wrapped__", None), getattr(function, "func", None)]
        for cell in getattr(function, "__closure__", None) or ():
            try:
                held.append(cell.cell_contents)
            except ValueError:  # not filled yet
                continue
        waiting += [each for each in held if callable(each) and not isinstance(each, type)]
