"""Calling services: channels with TLS and token, refusals as the errors of `sfumato.errors`, large files in chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from sfumato.errors import AnswerRejected, BrokenWeights, Busy, Faults, InvalidInput, SfumatoError, Unavailable
from sfumato.runtime.addresses import TLS, checked_target
from sfumato.runtime.proxies import grpc_options
from sfumato.runtime.renewing import RenewingChannel
from sfumato.runtime.serving.artifacts import CHUNK
from sfumato.runtime.serving.status import DETAILS, REASONS
from sfumato.runtime.settings import ClientSettings
from sfumato.runtime.telemetry import outgoing
from sfumato.v1.artifacts_pb2 import GetRequest, PutRequest, StatRequest
from sfumato.v1.artifacts_pb2_grpc import ArtifactServiceStub

KEEP_ALIVE = 60_000
"""Milliseconds without data on an open call after which the channel checks its connection: routers forget quiet connections."""
START_IT = "Is it running, and is this its address? `sfumato up` starts all services."


_HINTS = {
    "wrong_version_number": "It speaks no TLS: leave out tls://, and SFUMATO_CLIENT_CA.",
    "certificate": "Its certificate is not of the authority in SFUMATO_CLIENT_CA, names another host, or requires a client's certificate.",
    "failed parsing http/2": "It is no gRPC service: is this the port of a web server or of metrics?",
    "domain name not found": "There is no host of this name: is it spelled right, and known on this machine?",
    "errors resolving": "The name of the host cannot be resolved: is it spelled right, and known on this machine?",
    "socket closed": "Does it require TLS? Then its address is tls://host:port.",
    "connection reset": "Does it require TLS? Then its address is tls://host:port.",
    "end of tcp stream": "Does it require TLS? Then its address is tls://host:port.",
}
"""What to check, by words in gRPC's reason for a connection that fails."""


def channel(address: str, settings: ClientSettings | None = None) -> grpc.Channel:
    """A channel to the service at ``host:port``, without TLS unless the settings name an authority or the address is ``tls://host:port``.

    Every call sends the settings' token; a call with one answer has the settings' timeout unless it sets its own. Replaced certificate
    files are used from the next call on. A proxy is used as `sfumato.runtime.proxies` says. The channel connects on the first call;
    close it, or use it in a ``with`` block.

    Raises:
        InvalidInput: the address is not one; a client certificate without its key, or the reverse, or a file that cannot be read.
    """
    settings = settings or ClientSettings()
    try:
        checked_target(address)
    except ValueError as error:
        raise InvalidInput("address", f"{address[:100]!r} {error}.", hint="Example: 127.0.0.1:7106") from None
    options = [
        ("grpc.max_receive_message_length", settings.max_message),
        ("grpc.max_send_message_length", settings.max_message),
        ("grpc.keepalive_time_ms", KEEP_ALIVE),
        ("grpc.keepalive_timeout_ms", KEEP_ALIVE // 3),
        *grpc_options(address),
    ]
    target, tls = address.removeprefix(TLS), address.startswith(TLS)

    def opened() -> grpc.Channel:
        secure = _credentials(settings, tls)
        return grpc.insecure_channel(target, options) if secure is None else grpc.secure_channel(target, secure, options)

    files = [path for path in (settings.ca, settings.certificate, settings.key) if path is not None]
    return grpc.intercept_channel(RenewingChannel(opened, files) if files else opened(), _CallDefaults(settings))


@contextmanager
def calling(address: str = "") -> Iterator[None]:
    """Turn gRPC's errors within the block into those of `sfumato.errors`: around a call, or around the loop over a stream's answers.

    Raises:
        InvalidInput: the service refused a field (``field`` is its path in the message), or the token.
        NotFound, Conflict, WrongState, Busy, Unavailable, MissingWeights, BrokenWeights, AnswerRejected: as the service raised them;
            Unavailable also if no service answers at ``address``, or not in time.
        SfumatoError: the service failed.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error, address) from error


def error_of(error: grpc.RpcError, address: str = "") -> SfumatoError:
    """The error of `sfumato.errors` for a refused call."""
    if not isinstance(error, grpc.Call):
        return SfumatoError(f"The call failed: {error}.")
    code, told = error.code(), error.details() or "no reason was given"
    reason, violations = _details(error)
    if violations:
        return Faults([(violation.field, violation.description) for violation in violations])
    if reason in REASONS:
        return REASONS[reason](told)
    if reason == "ANSWER_REJECTED":
        return AnswerRejected(told, raw="")
    where = f"The service at {address}" if address else "The service"
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidInput("request", told)
        case grpc.StatusCode.UNAUTHENTICATED:
            return InvalidInput("token", f"{where} does not take it.", hint="Set SFUMATO_CLIENT_TOKEN to the service's SFUMATO_GRPC_TOKEN.")
        case grpc.StatusCode.UNAVAILABLE:
            hint = next((hint for words, hint in _HINTS.items() if words in told.lower()), START_IT)
            return Unavailable(f"{where} does not answer ({told}).", hint=hint)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable(f"{where} did not answer in time.", hint="Give it longer: SFUMATO_CLIENT_TIMEOUT, in seconds.")
        case grpc.StatusCode.CANCELLED:
            return Unavailable(f"{where} cancelled the call ({told}).", hint="Is it shutting down? Call again.")
        case grpc.StatusCode.UNIMPLEMENTED:
            return Unavailable(f"{where} does not offer this call.", hint="Is this the address of another service, or of an older version?")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than" in told:
            return SfumatoError(f"{where} cannot take or give this message ({told}).", hint="Large files travel as artifacts.")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Busy(f"{where} has the most open calls that it accepts.", hint="Try again later, or ask another replica.")
    return SfumatoError(f"{where} failed ({told}).")


def upload(channel: grpc.Channel, data: bytes) -> str:
    """Put the bytes into the artifact store behind a service; returns their SHA-256. Bytes that are stored already are not sent.

    Raises: as `calling`.
    """
    digest, stub = hashlib.sha256(data).hexdigest(), ArtifactServiceStub(channel)

    def pieces() -> Iterator[PutRequest]:
        yield PutRequest(digest=digest, chunk=data[:CHUNK])
        for start in range(CHUNK, len(data), CHUNK):
            yield PutRequest(chunk=data[start : start + CHUNK])

    with calling():
        if not stub.Stat(StatRequest(digest=digest)).held:
            stub.Put(pieces())
    return digest


def download(channel: grpc.Channel, digest: str) -> bytes:
    """The bytes of an artifact in the store behind a service.

    Raises:
        NotFound: there is none.
        BrokenWeights: it is damaged, in the store or in transit.
        SfumatoError: as `calling`.
    """
    with calling():
        data = b"".join(piece.chunk for piece in ArtifactServiceStub(channel).Get(GetRequest(digest=digest)))
    if hashlib.sha256(data).hexdigest() != digest:
        raise BrokenWeights(f"Artifact {digest} arrived damaged.", hint="Download it again.")
    return data


def _credentials(settings: ClientSettings, tls: bool) -> grpc.ChannelCredentials | None:
    if (settings.certificate is None) != (settings.key is None):
        hint = "Set SFUMATO_CLIENT_CERTIFICATE and SFUMATO_CLIENT_KEY."
        raise InvalidInput("certificate", "a client's certificate needs its key, and a key its certificate.", hint=hint)
    if settings.ca is None and settings.certificate is None and not tls:
        return None
    ca, key, certificate = (_pem(name, getattr(settings, name)) for name in ("ca", "key", "certificate"))
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _pem(field: str, path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InvalidInput(field, f"{path} cannot be read ({error.strerror}).") from error


def _details(error: grpc.Call) -> tuple[str, list[BadRequest.FieldViolation]]:
    """The reason and the field violations of a refusal."""
    info, request = ErrorInfo(), BadRequest()
    metadata: Any = error.trailing_metadata() or ()  # grpc's types are too narrow
    for key, value in metadata:
        if key == DETAILS:
            for detail in Status.FromString(value).details:
                detail.Unpack(info)
                detail.Unpack(request)
    return info.reason, list(request.field_violations)


class _CallDetails(NamedTuple):
    """A call's details, which interceptors replace."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _CallDefaults(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token and the trace to every call, and a deadline to calls with one answer."""

    def __init__(self, settings: ClientSettings) -> None:
        token = settings.token.get_secret_value()
        self._shown = (("authorization", f"Bearer {token}"),) if token else ()
        self._timeout = settings.timeout

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """One request, one response."""
        return continuation(self._with(client_call_details, self._timeout), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """One request, many responses."""
        return continuation(self._with(client_call_details, None), request)

    def intercept_stream_unary(self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any) -> Any:
        """Many requests, one response."""
        return continuation(self._with(client_call_details, self._timeout), request_iterator)

    def intercept_stream_stream(self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any) -> Any:
        """Many requests, many responses."""
        return continuation(self._with(client_call_details, None), request_iterator)

    def _with(self, call: Any, timeout: float | None) -> _CallDetails:
        metadata = (*(call.metadata or ()), *self._shown, *outgoing().items())
        timeout = call.timeout if call.timeout is not None else timeout
        return _CallDetails(call.method, timeout, metadata, call.credentials, call.wait_for_ready, call.compression)
