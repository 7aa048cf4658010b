"""The file of a student: weights, manifest, an ONNX graph, a signature (docs/decisions/0007-bundle-format-2.md).

`writer` writes it and `reader` opens it; `container`, `manifest` and `weight_coding` are its parts, `errors` its
faults, `signing` its keys, `onnx_export` and `onnx_runtime` the graph.
"""

__all__ = [
    "container",
    "errors",
    "manifest",
    "onnx_export",
    "onnx_runtime",
    "reader",
    "signing",
    "weight_coding",
    "writer",
]
