"""Where a picture's link leads, read without changing a byte of it, and whether it may be followed there.

A signature covers the exact bytes of a link, so none of them is mended. Nothing is looked up and nothing is asked.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import ipaddress
import re
import socket
from dataclasses import dataclass

from .errors import LinkError

_LINK = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{0,5}))?")
_DOTTED = re.compile(r"[0-9]+(?:\.[0-9]+){3}")
_LONGEST_HOST = 253
_UNSENDABLE = re.compile(rb"[\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True)
class Target:
    """A link taken apart without changing a byte: `raw` is what follows the host, as it goes over the wire.

    `host` and `port` are what a connection is made to: in ASCII and lower case, an IPv6 address without its brackets,
    no port where none is written. `authority` is the spelling of both in the link.
    """

    scheme: str
    authority: str
    host: str
    port: int | None
    raw: bytes

    @property
    def loopback(self) -> bool:
        """Whether the host is this machine."""
        return is_loopback(self.host)


def split_link(link: str) -> Target:
    """Take a link apart; LinkError for what can never be sent as it stands. Only non-ASCII bytes are escaped."""
    match = _LINK.fullmatch(link.strip())
    if not match:
        raise LinkError("the picture's link is no http or https address")
    scheme, authority, rest = match[1].lower(), match[2], match[3]
    if "@" in authority:
        raise LinkError("the picture's link holds a user name, which is refused")
    try:
        text = rest.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise LinkError("the picture's link is no text") from exc
    raw = text if text.isascii() else b"".join(bytes([byte]) if byte < 0x80 else b"%%%02X" % byte for byte in text)
    if "\\" in authority or _UNSENDABLE.search(raw) or re.search(r"[\x00-\x20\x7f]", authority):
        raise LinkError("the picture's link holds a space, a control character or a backslash where none can be")
    host, port = _read_authority(authority)
    return Target(scheme, authority, host, port, raw if raw.startswith(b"/") else b"/" + raw)


@functools.lru_cache(maxsize=64)
def _read_authority(authority: str) -> tuple[str, int | None]:
    """Host and port. What is judged here is what is connected to: nobody reads the authority a second time."""
    match = _AUTHORITY.fullmatch(authority)
    if match and not match[1]:
        raise LinkError("the picture's link has no host")
    port = int(match[2]) if match and match[2] else None
    if not match or (port or 0) > 65535:
        raise LinkError("the picture's link has no valid host")
    try:
        host = _read_host(match[1])
    except ValueError as exc:
        raise LinkError("the picture's link has no valid host") from exc
    return host, port


def _read_host(host: str) -> str:
    """The host as a resolver gets it; ValueError where it is none."""
    if not host.isascii():
        # Only a name in another script needs these tables, and hardly any store has one.
        import idna

        host = idna.encode(host.lower()).decode("ascii")
    if host.startswith("["):
        ipaddress.IPv6Address(host[1:-1])
        return host[1:-1]
    if _DOTTED.fullmatch(host):
        ipaddress.IPv4Address(host)
    if len(host) > _LONGEST_HOST:
        raise ValueError("longer than any name")
    return host.lower()


@functools.lru_cache(maxsize=256)
def expiry(link: str) -> int | None:
    """When a signed link dies, in seconds since 1970, from its own parameters; None where it does not say.

    TOS and S3 version 4 give a date and a lifetime, S3 version 2 and OSS a moment, Azure a moment as text.
    """
    query = {name.lower(): value for name, _, value in (part.partition("=") for part in _query(link).split("&"))}
    for name, value in query.items():
        if name.endswith("-expires") and value.isdecimal():
            start = _moment(query.get(name.removesuffix("expires") + "date", ""), "%Y%m%dT%H%M%SZ")
            return None if start is None else start + int(value[:9])
    if query.get("expires", "").isdecimal():
        return int(query["expires"][:12])
    return _moment(query.get("se", "").replace("%3a", ":").replace("%3A", ":"), "%Y-%m-%dT%H:%M:%SZ")


def _query(link: str) -> str:
    return link.partition("?")[2].partition("#")[0]


def _moment(text: str, form: str) -> int | None:
    try:
        return int(dt.datetime.strptime(text, form).replace(tzinfo=dt.UTC).timestamp())
    except (ValueError, OverflowError):
        return None


def next_hop(origin: Target, current: Target, location: str) -> Target:
    """Where a redirect leads, rebuilt from its `Location` alone; LinkError where the picture may not be sought there.

    Only https is followed, never to a private address: a store's answer must not make this machine ask its own network.
    Loopback may lead to loopback. The signature of the link before is never carried along.
    """
    location = location.strip()
    if not re.match(r"[a-z][a-z0-9+.-]*:", location, re.IGNORECASE):
        location = _absolute(current, location)
    target = split_link(location)
    if (
        origin.loopback
        and current.loopback
        and target.loopback
        and (current.scheme, target.scheme) != ("https", "http")
    ):
        return target
    if target.scheme != "https":
        raise LinkError(f"{current.host} redirects the picture to an address without TLS ({target.host})")
    if is_private(target.host) and not (origin.loopback and target.loopback):
        raise LinkError(f"{current.host} redirects the picture to a private address ({target.host})")
    return target


def _absolute(current: Target, location: str) -> str:
    """A relative reference made absolute by joining strings, so that nothing in it is normalised."""
    path = current.raw.decode("latin-1").partition("?")[0]
    base = f"{current.scheme}://{current.authority}"
    if location.startswith("//"):
        return f"{current.scheme}:{location}"
    if location.startswith("/"):
        return base + location
    if location.startswith("?") or not location:
        return base + path + location
    return base + path.rpartition("/")[0] + "/" + location


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address a host spells, also in the short and octal forms that resolvers take; None for a name."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return getattr(address, "ipv4_mapped", None) or address
    with contextlib.suppress(OSError, UnicodeError):
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address; nothing is looked up."""
    name = host.lower().rstrip(".")
    address = _address(host)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def is_private(host: str) -> bool:
    """Whether a host is not on the public internet, as far as its spelling tells; nothing is looked up."""
    address = _address(host)
    return is_loopback(host) or (address is not None and not address.is_global)
