"""Hidden matrices of a model: weights between other weights, as optimizers such as Muon take them.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": embeddings, the first and the last layer,
biases and gains are left to AdamW. What a weight is, the graph of a forward pass tells, whatever the classes of the
model: a hidden matrix is multiplied, or convolved, with something that comes from other parameters, and what comes of
it is multiplied with other parameters in turn. A weight that is anything else besides, such as an embedding that is
tied to the last layer, is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fedpress.compression.models.reproducible import evaluating

PRODUCTS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Linear", "Convolution", "MkldnnConvolution", "CudnnConvolution")
"""Operations that multiply by a matrix or convolve with filters, as autograd names them."""
VIEWS = (
    "T", "View", "Transpose", "Permute", "Reshape", "ReshapeAlias", "UnsafeView", "AsStrided", "Expand", "Squeeze",
    "Unsqueeze", "Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit", "Unbind", "Narrow", "Clone", "ToCopy",
    "Alias", "Detach", "Chunk",
)  # fmt: skip
"""Operations that leave the numbers of a weight as they are."""

_Node: TypeAlias = Any
"""A node of autograd's graph."""


def names(model: nn.Module, loss: Callable[[], Tensor]) -> frozenset[str]:
    """Return the names of a model's hidden matrices and filters: 2-d weights, and those of convolutions.

    Frozen parameters count in telling what is hidden, and are not among the result.

    Args:
        model: The model; left as it is.
        loss: Runs the model on some examples, one is enough, and returns the loss.

    >>> layers = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    >>> sorted(names(layers, lambda: layers(torch.tensor([[1, 2]])).sum()))
    ['1.weight']
    """
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        with evaluating(model), torch.enable_grad():
            for parameter in frozen:
                parameter.requires_grad_(True)
            end = loss().grad_fn
        hidden = set() if end is None else _hidden(end)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return frozenset(name for name, p in model.named_parameters() if p.requires_grad and id(p) in hidden)


def _hidden(end: _Node) -> set[int]:
    """Return the ids of the hidden matrices in the graph that a node ends."""
    order, feeding = _reached(end)
    hidden: set[int] = set()
    others: set[int] = set()
    for node in order:
        is_product = _kind(node) in PRODUCTS
        operands = [(_weight(inner), inner) for inner, _ in node.next_functions if inner is not None]
        from_others = any(weight is None for weight, _ in operands)  # not from the model's inputs alone
        for weight, _ in operands:
            if weight is None or (_kind(node) in VIEWS and len(operands) == 1):
                continue  # a view counts where it is used
            matrix = weight.ndim == 2 or weight.ndim > 2 and "Convolution" in _kind(node)
            (hidden if is_product and matrix and from_others and node in feeding else others).add(id(weight))
    return hidden - others


def _reached(end: _Node) -> tuple[list[_Node], set[_Node]]:
    """Return all nodes, and those of them that feed the product with a parameter."""
    seen: dict[tuple[_Node, bool], None] = {}
    stack = [(end, False)]
    while stack:
        node, fed = stack.pop()
        if (node, fed) in seen or (node, True) in seen:
            continue
        seen[node, fed] = None
        product = _kind(node) in PRODUCTS and any(_weight(inner) is not None for inner in _inner(node))
        stack += [(inner, fed or product) for inner in _inner(node)]
    return list(dict.fromkeys(node for node, _ in seen)), {node for node, fed in seen if fed}


def _inner(node: _Node) -> Iterator[_Node]:
    return (inner for inner, _ in node.next_functions if inner is not None)


def _weight(node: _Node) -> Tensor | None:
    """Return the parameter that a node is, or is a view of; None: it is something that was computed."""
    while node is not None and not hasattr(node, "variable"):
        inner = list(_inner(node))
        if _kind(node) not in VIEWS or len(inner) != 1:
            return None
        node = inner[0]
    return None if node is None else node.variable


def _kind(node: _Node) -> str:
    return str(node.name()).rpartition("::")[2].partition("Backward")[0]
