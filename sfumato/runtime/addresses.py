"""Addresses as users write them: ``host:port``, and URLs. They are checked where they are read, before a library sees them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator

TLS = "tls://"
_NAMING = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")
"""Schemes of gRPC's own syntax of names, which gRPC itself reads."""
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_BUS = ("nats", "tls", "ws", "wss")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and its port; an IPv6 host has no brackets. ``tls``: the address began with ``tls://``."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parsed_address(text: str, *, any_host: bool = False) -> Address:
    """The host and the port of ``host:port``, ``[IPv6]:port`` or ``tls://host:port``; ``any_host``: the host may be empty.

    Raises:
        ValueError: the text is something else; the message says what.
    """
    tls, rest = text.startswith(TLS), text.removeprefix(TLS)
    if "://" in rest or "/" in rest:
        raise ValueError("must be host:port, or tls://host:port, and neither a URL nor a path")
    host, colon, port = rest.rpartition(":")
    if not colon:
        raise ValueError("must be host:port; there is no port")
    if not (port.isascii() and port.isdigit() and int(port[:6]) <= 65535):
        raise ValueError("must be host:port with a port from 0 to 65535")
    return Address(_host(host, any_host), int(port), tls)


def checked_target(text: str) -> str:
    """An address for gRPC: ``host:port``, ``tls://host:port``, or a name in gRPC's own syntax such as ``dns:///host:port``.

    Raises:
        ValueError: it is neither.
    """
    if text.startswith(_NAMING):
        if not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("must be ASCII without spaces")
        return text
    parsed_address(text)
    return text


def host_of(target: str) -> str:
    """The host of an address for gRPC (see `checked_target`); empty for sockets of the file system."""
    if target.startswith("unix"):
        return ""
    name = target.removeprefix(TLS)
    for scheme in _NAMING:
        name = name.removeprefix(scheme)
    name = name.rpartition("/")[2].split(",")[0]
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name if name.count(":") > 1 else name.partition(":")[0]


def _host(host: str, any_host: bool) -> str:
    """A host without brackets. Raises ValueError: it is not the name of a host."""
    if not host:
        if any_host:
            return ""
        raise ValueError("must be host:port; there is no host")
    if host.startswith("[") or ":" in host:
        try:
            if not host.startswith("["):
                raise ipaddress.AddressValueError(host)
            return str(ipaddress.IPv6Address(host[1:].removesuffix("]").partition("%")[0]))
        except ipaddress.AddressValueError:
            raise ValueError("must be host:port, and an IPv6 host stands in brackets: [::1]:7101") from None
    if not host.isascii():
        raise ValueError("must name its host in ASCII (xn--... for a name in another script)")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split(".")):
        raise ValueError("must be host:port, and this is no host's name")
    return host


def parsed_url(text: str, schemes: tuple[str, ...]) -> SplitResult:
    """The parts of a URL with one of these schemes, a host, and a port that is valid if there is one.

    Raises:
        ValueError: it is not such a URL.
    """
    wanted = " or ".join([", ".join(f"{scheme}://" for scheme in schemes[:-1]), f"{schemes[-1]}://"])
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 (raises ValueError for a port that is not one)
    except ValueError:
        raise ValueError(f"must be a URL that begins with {wanted}, with a valid host and port") from None
    if parts.scheme not in schemes:
        raise ValueError(f"must be a URL that begins with {wanted}")
    _host(f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "", any_host=False)
    return parts


def _optional_target(text: str) -> str:
    return text and checked_target(text)


def _optional_targets(text: str) -> str:
    return text and ",".join(checked_target(part.strip()) for part in text.split(","))


def _optional_listening(text: str) -> str:
    if text and not text.startswith(_NAMING):
        parsed_address(text, any_host=True)
    return text


def _optional_http(text: str) -> str:
    if text:
        parsed_url(text, ("http", "https"))
    return text


def _optional_collector(text: str) -> str:
    if text and "://" not in text:
        checked_target(text)
        return text
    return _optional_http(text)


def _bus_urls(text: str) -> str:
    for part in text.split(",") if text else []:
        url = part.strip()
        parsed_url(url if "://" in url else f"nats://{url}", _BUS)
    return text


ServiceAddress = Annotated[str, AfterValidator(_optional_target)]
"""A setting: the address of a gRPC service, or empty."""
ServiceAddresses = Annotated[str, AfterValidator(_optional_targets)]
"""A setting: addresses of replicas of a gRPC service, separated by commas, or empty."""
ListeningAddress = Annotated[str, AfterValidator(_optional_listening)]
"""A setting: the address that a process listens on, whose host may be empty, or empty."""
HttpUrl = Annotated[str, AfterValidator(_optional_http)]
"""A setting: a URL with http:// or https://, or empty."""
CollectorAddress = Annotated[str, AfterValidator(_optional_collector)]
"""A setting: a collector's ``host:port`` or URL, or empty."""
BusUrls = Annotated[str, AfterValidator(_bus_urls)]
"""A setting: addresses of nats-servers, separated by commas."""
