"""The messages of Istio's certificate service, and its name.

They are declared here by their numbers, and protobuf's own library reads and writes
them. Fields that we have no use for are skipped, as protobuf wants it.

Spec: istio.v1.auth.IstioCertificateService:
    IstioCertificateRequest { csr = 1, validity_duration = 3, metadata = 4 (Struct) }
    IstioCertificateResponse { repeated cert_chain = 1 }
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    struct_pb2,
)
from google.protobuf.message import DecodeError

SERVICE: Final = "istio.v1.auth.IstioCertificateService"
METHOD: Final = "CreateCertificate"
PATH: Final = f"/{SERVICE}/{METHOD}"
IMPERSONATED: Final = "ImpersonatedIdentity"
"""Key of the metadata that names whom a node's proxy asks for."""

_PACKAGE: Final = "istio.v1.auth"
_FIELD: Final = descriptor_pb2.FieldDescriptorProto


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller asks for."""

    csr: str
    validity_s: int = 0
    """0: as long as the CA likes."""
    impersonated: str | None = None
    """Whom it asks for, if not for itself."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the wire's bytes.

        Raises:
            ValueError: they are no request.
        """
        message = _parse(_Request, data)
        fields = message.metadata.fields
        impersonated = None
        if IMPERSONATED in fields:
            if fields[IMPERSONATED].WhichOneof("kind") != "string_value":
                raise ValueError(f"{IMPERSONATED} is no string")
            impersonated = fields[IMPERSONATED].string_value
        return cls(
            csr=message.csr,
            validity_s=message.validity_duration,
            impersonated=impersonated,
        )

    def encode(self) -> bytes:
        """Write the wire's bytes."""
        message = _Request(csr=self.csr, validity_duration=self.validity_s)
        if self.impersonated is not None:
            message.metadata.update({IMPERSONATED: self.impersonated})
        return bytes(message.SerializeToString())


@dataclass(frozen=True, slots=True)
class Response:
    """What the CA issued."""

    cert_chain: tuple[str, ...]
    """PEM: leaf first, intermediates, the roots as last item."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the wire's bytes.

        Raises:
            ValueError: they are no response.
        """
        return cls(tuple(_parse(_Response, data).cert_chain))

    def encode(self) -> bytes:
        """Write the wire's bytes."""
        return bytes(_Response(cert_chain=self.cert_chain).SerializeToString())


def _parse(kind: Any, data: bytes) -> Any:  # noqa: ANN401  a class made below
    try:
        return kind.FromString(data)
    except DecodeError as exc:
        raise ValueError(f"is no {kind.DESCRIPTOR.name}") from exc


def _classes() -> tuple[Any, ...]:
    """Make the two message classes, in a pool of their own."""
    struct = struct_pb2.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto(
        name="fastpath/ca.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[struct.name],
    )
    request = file.message_type.add(name="IstioCertificateRequest")
    request.field.add(name="csr", number=1, type=_FIELD.TYPE_STRING)
    request.field.add(name="validity_duration", number=3, type=_FIELD.TYPE_INT64)
    request.field.add(
        name="metadata",
        number=4,
        type=_FIELD.TYPE_MESSAGE,
        type_name=".google.protobuf.Struct",
    )
    response = file.message_type.add(name="IstioCertificateResponse")
    response.field.add(
        name="cert_chain",
        number=1,
        type=_FIELD.TYPE_STRING,
        label=_FIELD.LABEL_REPEATED,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return tuple(
        message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{_PACKAGE}.{each.name}")
        )
        for each in (request, response)
    )


_Request, _Response = _classes()
