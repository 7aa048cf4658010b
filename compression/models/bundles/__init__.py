"""Bundles, the download files of students: weights, a manifest, optionally an ONNX model and a signature.

`writer.save` writes a bundle, `reader.open_bundle` verifies it without torch, and `writer.rebuild` makes the model of
it. `container` defines the file, `manifest` and `weight_coding` its parts, and `errors` its faults; `signing` reads
keys; `bases` puts a bundle that is an adapter together with its base; `onnx_export` and `onnx_runtime` make and run the
ONNX model, of which `onnx_weights` leaves out the weights. Why the format is as it is:
docs/decisions/0007-bundle-format-2.md.
"""

__all__ = [
    "bases",
    "container",
    "errors",
    "manifest",
    "onnx_export",
    "onnx_quantization",
    "onnx_runtime",
    "onnx_weights",
    "reader",
    "signing",
    "weight_coding",
    "writer",
]
