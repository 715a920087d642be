"""Which connections go through a proxy: the one place that decides, for gRPC, HTTP and buckets alike.

The variables are those of curl, Python and httpx, in small or capital letters: ``http_proxy``, ``https_proxy``, ``all_proxy``, for gRPC
before them ``grpc_proxy``, and ``no_proxy`` for exceptions. ``no_proxy`` is read as httpx reads it (a name stands for itself and
for the names below it, ``.name`` for those below it only, a port limits an entry to that port, ``*`` is everything), and an entry may
be a network such as ``100.64.0.0/10``. gRPC reads these variables by other rules, and so does the client of buckets; neither is left to it.

Addresses of this machine, of private networks and of a cluster are never reached through a proxy.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from sfumato.runtime.addresses import TLS, host_of

INSIDE = (".localhost", ".svc", ".cluster.local")
"""Ends of names that are names of this machine or of a cluster."""
_PORTS = {"http": 80, "https": 443}


def proxy_of(url: str) -> str | None:
    """The URL of the proxy through which an ``http://`` or ``https://`` URL is reached; None: it is reached directly."""
    parts = urlsplit(url)
    return _chosen(parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0), parts.scheme, (parts.scheme, "all"))


def grpc_options(target: str) -> list[tuple[str, str | int]]:
    """The options of a channel to a gRPC address, which make it use the proxy that this module chooses, or none.

    gRPC can use proxies with ``http://`` only; others are left out.
    """
    scheme = "https" if target.startswith(TLS) else "http"
    port = target.rpartition(":")[2]
    proxy = _chosen(host_of(target), int(port) if port.isdigit() else 0, scheme, ("grpc", "https", "http", "all"), speaks=("http",))
    return [("grpc.enable_http_proxy", 0)] if proxy is None else [("grpc.enable_http_proxy", 1), ("grpc.http_proxy", proxy)]


def is_inside(host: str) -> bool:
    """Whether a host is this machine, in a private network, or a name that only a cluster or a local network knows."""
    host = host.lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "." not in host or host.endswith(INSIDE) or host == socket.gethostname().lower()
    return address.is_private or address.is_loopback or address.is_link_local or address.is_unspecified


def _chosen(host: str, port: int, scheme: str, variables: tuple[str, ...], speaks: tuple[str, ...] = ()) -> str | None:
    """The proxy of the first of these variables that is set, with one of the schemes ``speaks`` (empty: any)."""
    settings = getproxies()
    if is_inside(host) or _excepted(host, port, scheme, settings.get("no", "")):
        return None
    for variable in variables:
        proxy = settings.get(variable, "").strip()
        proxy = proxy if not proxy or "://" in proxy else f"http://{proxy}"
        if proxy and (not speaks or urlsplit(proxy).scheme in speaks):
            return proxy
    return None


def _excepted(host: str, port: int, scheme: str, exceptions: str) -> bool:
    """Whether ``no_proxy`` names the host."""
    host = host.lower()
    return any(_names(entry.strip().lower(), host, port, scheme) for entry in exceptions.split(","))


def _names(entry: str, host: str, port: int, scheme: str) -> bool:
    if not entry or entry == "*":
        return entry == "*"
    if "://" in entry:
        only, _, entry = entry.partition("://")
        if only not in ("all", scheme):
            return False
        return _is_or_below(*_split(entry), host, port, below=False)
    if _network_holds(entry, host):
        return True
    name, limit = _split(entry)
    return _is_or_below(name, limit, host, port, below=not _is_address(name) and name != "localhost")


def _is_or_below(name: str, limit: int, host: str, port: int, *, below: bool) -> bool:
    """Whether the host is the name, or if ``below`` one of its names; ``limit`` is the port that is meant, 0 for any."""
    if limit and limit != port:
        return False
    if name.startswith("*."):
        return host.endswith(name[1:])
    if name.startswith(("*", ".")):
        bare = name.lstrip("*.")
        return host.endswith(f".{bare}") or (name[0] == "*" and host == bare)
    return host == name or (below and host.endswith(f".{name}"))


def _split(entry: str) -> tuple[str, int]:
    """The host and the port of an entry; port 0 if it names none."""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return host, int(rest[1:]) if rest[1:].isdigit() else 0
    if entry.count(":") == 1:
        host, _, port = entry.partition(":")
        return host, int(port) if port.isdigit() else 0
    return entry.partition("/")[0], 0


def _network_holds(entry: str, host: str) -> bool:
    """Whether the entry is a network in CIDR's form, and the host an address of it."""
    if "/" not in entry or not _is_address(host):
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
