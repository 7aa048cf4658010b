"""The wire format, byte for byte as in docs/reference/wire.md.

`payloads` packs and decodes; `positions` and `values` are its halves, `position_set` a set both sides hold; `dyadic`,
`log_levels` and `uniform_steps` are formats of values.
"""

__all__ = ["dyadic", "log_levels", "payloads", "position_set", "positions", "rice", "uniform_steps", "values"]
