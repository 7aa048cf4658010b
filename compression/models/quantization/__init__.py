"""Quantization of a student's weights to 2 to 8 bits.

`quantize` rounds to nearest or on calibration data (`calibrated`): by `adaround`, which learns the direction of
rounding for each weight, or by `gptq`, which lets the weights not yet rounded make up for the others' errors;
`quantization_aware` trains with rounded weights before; `quantized_tensor` is a tensor of codes and scales.
"""

__all__ = ["adaround", "calibrated", "gptq", "quantization_aware", "quantize", "quantized_tensor", "settings"]
