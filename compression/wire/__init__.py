"""The wire format, byte for byte as in docs/reference/wire.md.

`payloads` packs and decodes a payload: a header, `positions` (with `rice`) and `values` (with the formats `dyadic`,
`log_levels` and `uniform_steps`). `position_set` writes positions without values, such as a mask.
"""

__all__ = ["dyadic", "log_levels", "payloads", "position_set", "positions", "rice", "uniform_steps", "values"]
