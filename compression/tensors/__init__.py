"""Named arrays as one vector, and what is known about it.

`layout` is the order of the tensors, `flatten` the way there and back, `buffer_codec` what travels beside; `mask` the
entries of a sparse model; `update` what a payload says; `side_info` what both sides know; `replica` a model held
apart.
"""

__all__ = ["buffer_codec", "flatten", "layout", "mask", "replica", "side_info", "update"]
