from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListRequest(_message.Message):
    __slots__ = ("tier", "newest_only")
    TIER_FIELD_NUMBER: _ClassVar[int]
    NEWEST_ONLY_FIELD_NUMBER: _ClassVar[int]
    tier: str
    newest_only: bool
    def __init__(self, tier: _Optional[str] = ..., newest_only: _Optional[bool] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("bundles",)
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    bundles: _containers.RepeatedCompositeFieldContainer[Bundle]
    def __init__(self, bundles: _Optional[_Iterable[_Union[Bundle, _Mapping]]] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("tier", "version", "size", "sha256", "created")
    TIER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    tier: str
    version: int
    size: int
    sha256: bytes
    created: int
    def __init__(self, tier: _Optional[str] = ..., version: _Optional[int] = ..., size: _Optional[int] = ..., sha256: _Optional[bytes] = ..., created: _Optional[int] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("tier", "version", "offset")
    TIER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    tier: str
    version: int
    offset: int
    def __init__(self, tier: _Optional[str] = ..., version: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("bundle", "data")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    bundle: Bundle
    data: bytes
    def __init__(self, bundle: _Optional[_Union[Bundle, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...
