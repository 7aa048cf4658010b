"""Weights in few bits: `quantize` rounds, `adaround` learns how to, `quantization_aware` trains with it."""

__all__ = ["adaround", "quantization_aware", "quantize", "quantized_tensor", "settings"]
