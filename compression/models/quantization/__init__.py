"""Quantization of a student's weights to 2 to 8 bits.

`quantize` rounds to nearest or by `adaround`, which learns the direction of rounding for each weight;
`quantization_aware` trains with rounded weights before; `quantized_tensor` is a tensor of codes and scales.
"""

__all__ = ["adaround", "quantization_aware", "quantize", "quantized_tensor", "settings"]
