"""The exceptions of fedpress.

    FedpressError
    ├── BaseError(ValueError)               pretrained weights are not those that the federation has agreed on
    ├── LayoutError(ValueError)             named arrays or a vector do not fit the layout
    ├── NonFiniteError(ValueError)          an encoder was given NaN or infinity (sender's side)
    └── PayloadError(ValueError)            bytes that are not a payload for this receiver
        ├── Truncated                       ends before its header or its body does
        ├── BadMagic                        not a fedpress payload at all
        ├── UnsupportedVersion              a wire version that this build does not read
        ├── UnknownFormat                   a value tag, index tag or flag that this build does not know
        ├── CountTooLarge                   claims more entries than the vector has
        ├── SizeMismatch                    made for a vector of another size
        ├── LayoutMismatch                  same size, other tensors
        ├── ReferenceMismatch               positions coded against shared ones that are not held here
        ├── LengthMismatch                  bytes left over, or a body of an impossible length
        ├── ChecksumMismatch                damaged on the way
        ├── InvalidPositions                positions that repeat, fall, or lie outside the vector
        ├── InvalidValues                   values whose bits no encoder writes
        ├── NonFiniteValues                 values that are NaN or infinite
        ├── ValuesTooLarge                  finite values that are beyond any training, and overflow sums and squares
        └── NegativeVariance                a running variance below zero (buffers only)

A server that meets a `PayloadError` refuses that one reply, counts it under the name of its class, and goes on.
"""


class FedpressError(Exception):
    """Base of every exception that fedpress raises on purpose.

    Attributes:
        exit_code: Of a command that ends by it; 2 stands for input that cannot be used.
    """

    exit_code = 2


class BaseError(FedpressError, ValueError):
    """The pretrained weights on this device are not those of the federation; the text has both hashes.

    A client that meets it answers with the text, trains nothing and changes nothing; the others go on.
    """


class LayoutError(FedpressError, ValueError):
    """Named arrays or a vector do not fit the layout: a name, a shape, a dtype or a size differs."""


class NonFiniteError(FedpressError, ValueError):
    """An update holds NaN or infinity. The encoder's state is as it was before the call."""


class PayloadError(FedpressError, ValueError):
    """Bytes from elsewhere are not a valid payload for this receiver."""


class Truncated(PayloadError):
    """The payload ends before its header, or before the body that its header announces."""


class BadMagic(PayloadError):
    """The first two bytes are not those of a fedpress payload."""


class UnsupportedVersion(PayloadError):
    """The payload is of a wire version that this build does not read."""


class UnknownFormat(PayloadError):
    """The value tag, the index tag or a flag is not known to this build."""


class CountTooLarge(PayloadError):
    """The payload claims more entries than the vector has."""


class SizeMismatch(PayloadError):
    """The payload was made for a vector of another size."""


class LayoutMismatch(PayloadError):
    """The payload was made for a vector of the same size, but of other tensors."""


class ReferenceMismatch(PayloadError):
    """The positions are coded against shared positions that this receiver does not hold, or others than it holds."""


class LengthMismatch(PayloadError):
    """Bytes are left over after the body, or the body has a length that its header rules out."""


class ChecksumMismatch(PayloadError):
    """The checksum does not fit the bytes: the payload was damaged on the way."""


class InvalidPositions(PayloadError):
    """The positions repeat, fall, lie outside the vector, or are not as many as announced."""


class InvalidValues(PayloadError):
    """Values of variable length are cut off, too long, or not as many as announced."""


class NonFiniteValues(PayloadError):
    """A decoded value is NaN or infinite."""


class ValuesTooLarge(PayloadError):
    """A decoded value is finite, and so large that sums or squares of such values overflow."""


class NegativeVariance(PayloadError):
    """A running variance is below zero."""
