"""Forms: interface of the formats that write a whole update at once.

A value format (`wire.values`) writes entries one by one, and its length follows from their number. A form rules the
whole body of a payload: it may need the layout (a scale for each tensor, factors of matrices) and has one parameter,
such as the bits of a value. docs/reference/wire.md specifies the forms; the registry is `payloads.FORMS`.
"""

from collections.abc import Callable
from typing import NamedTuple

from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.update import Update


class Form(NamedTuple):
    """The reader of one format.

    Attributes:
        name: Name in tables.
        tag: Value tag on the wire, 64 or more; never used again for another format.
        length: parameter, layout -> bytes of the body behind the parameter, or None if there is no such parameter.
            Must not allocate anything of the size of the vector.
        unpack: parameter, body of that length, layout -> the update.
    """

    name: str
    tag: int
    length: Callable[[int, Layout], int | None]
    unpack: Callable[[int, memoryview, Layout], Update]


class Scheme(NamedTuple):
    """A form with a parameter, and the writer: the argument of `encoder.quantized`.

    Law: with `body, decoded = pack(v, layout, seed)`, `len(body) == form.length(parameter, layout)`, and
    `form.unpack(parameter, body, layout)` equals `decoded` bit for bit; the same seed gives the same bytes.

    Attributes:
        form: The reader.
        parameter: 0 to 255.
        pack: Finite update (n,), layout, seed -> the body behind the parameter, and the update that is read from it.
    """

    form: Form
    parameter: int
    pack: Callable[[Vector, Layout, int], tuple[bytes, Update]]
