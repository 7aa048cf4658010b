"""What stands inside `compress`: mods are found wherever they are in the chain, and nothing else is taken for one."""

import contextlib
import functools
import inspect
from typing import Any

import flwr.client.mod as legacy
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp import mod as flower
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.supercore.task_identity import TaskIdentity

from fedpress.client import other_mods
from fedpress.client.other_mods import ModError


def verdict(
    before: list[Mod], after: list[Mod], *, of_function: bool = False, client_fn: Any = None, arrays: bool = False
) -> str:
    """Return what a mod with `after` inside and `before` outside says of them; empty: nothing."""
    said: list[str] = []

    def looking(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        try:
            other_mods.check_outside(inspect.currentframe())
            other_mods.check(call_next)
            said.append("")
        except ModError as error:
            said.append(str(error))
            raise
        return message

    mods = [*before, looking]
    app = ClientApp(client_fn, mods=mods if of_function else [*mods, *after])
    if client_fn is None:
        app.train(mods=after if of_function else None)(lambda message, context: message)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    content = {"a": ArrayRecord(), "c": ConfigRecord({"clipping_norm": 1.0})} if arrays else {}
    message = Message(RecordDict(content), dst_node_id=1, message_type="train")
    with contextlib.suppress(ModError):
        app(message, Context(1, 1, {}, RecordDict(), {}))
    return said[0]


def wrapped(inner: Mod) -> Mod:
    @functools.wraps(inner)
    def outer(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        return inner(message, context, call_next)

    return outer


@pytest.mark.parametrize("of_function", [False, True], ids=["of the app", "of the function"])
@pytest.mark.parametrize(
    "mod",
    [
        flower.fixedclipping_mod, flower.adaptiveclipping_mod, legacy.fixedclipping_mod, legacy.adaptiveclipping_mod,
        legacy.secagg_mod, legacy.secaggplus_mod,
    ],
)  # fmt: skip
def test_what_is_void_inside_is_refused_however_it_got_there(mod: Mod, of_function: bool) -> None:
    name = mod.__name__
    for inside in ([mod], [flower.message_size_mod, mod], [functools.partial(mod)], [wrapped(mod)]):
        text = verdict([], inside, of_function=of_function)
        assert text.startswith(f"{name} stands inside compress(...)")
        assert ("wrappers.clipped" if "clipping" in name else "secure aggregation") in text


LOCAL_DP = flower.LocalDpMod(1.0, 1.0, 1.0, 0.1)


@pytest.mark.parametrize("mod", [flower.fixedclipping_mod, flower.adaptiveclipping_mod, LOCAL_DP])
def test_what_finds_no_weights_outside_is_refused(mod: Any) -> None:
    name = getattr(mod, "__name__", "LocalDpMod")
    for outside in ([mod], [flower.message_size_mod, mod], [mod, flower.message_size_mod], [wrapped(mod)]):
        text = verdict(outside, [], arrays=True)
        assert text.startswith(f"{name} stands before compress(...)") and "must be the first" in text


def test_what_keeps_its_promise_is_let_be() -> None:
    for inside in (
        [],
        [flower.message_size_mod, flower.arrays_size_mod],
        [legacy.LocalDpMod(1.0, 1.0, 1.0, 0.1)],
    ):
        assert verdict([], inside) == ""
    assert verdict([flower.message_size_mod], []) == ""


def test_a_mod_of_ones_own_of_the_same_name_is_let_be() -> None:
    def fixedclipping_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        return call_next(message, context)

    assert verdict([], [fixedclipping_mod]) == ""


def test_an_app_made_from_a_client_fn_is_named() -> None:
    def client_fn(context: Context) -> Any:
        raise AssertionError("it is never called")

    assert verdict([], [], client_fn=client_fn).startswith("the ClientApp is made from a client_fn")


def test_a_chain_that_bites_its_tail_ends() -> None:
    def snake() -> None:
        inner()

    def inner() -> None:
        snake()

    other_mods.check(snake)
