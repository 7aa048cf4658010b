"""Models and updates as one flat vector of float32.

`layout` is the order of the tensors in the vector and `flatten` the conversion; `buffer_codec` writes the buffers that
travel beside it, `array_file` files of arrays. `mask` has the entries of a sparse model, `update` the content of a
payload, `side_info` the knowledge that sender and receiver share, `replica` the model that a client holds.
"""

__all__ = ["array_file", "buffer_codec", "flatten", "layout", "layout_doubts", "mask", "replica", "side_info", "update"]
