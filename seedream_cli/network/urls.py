"""Where an image's link leads, read without changing a byte of it, and whether it may be followed there.

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
from typing import Literal

from ..errors import LinkError

_LINK = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE | re.DOTALL)

_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{0,5}))?")

_DOTTED = re.compile(r"[0-9]+(?:\.[0-9]+){3}")

_LONGEST_HOST = 253

_UNSENDABLE = re.compile(rb"[\x00-\x1f\x7f]")

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Link:
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


def split_link(link: str) -> Link:
    """Take a link apart; LinkError for what can never be sent as it stands. Only spaces and non-ASCII are escaped."""
    match = _LINK.fullmatch(link.strip())
    if not match:
        raise LinkError("the image's link is no http or https address")
    scheme, authority, rest = match[1].lower(), match[2], match[3]
    if "@" in authority:
        raise LinkError("the image's link holds a user name, which is refused")
    try:
        text = rest.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise LinkError("the image's link is no text") from exc
    raw = text if text.isascii() else b"".join(bytes([byte]) if byte < 0x80 else b"%%%02X" % byte for byte in text)
    raw = raw.replace(b" ", b"%20")
    if "\\" in authority or _UNSENDABLE.search(raw) or re.search(r"[\x00-\x20\x7f]", authority):
        raise LinkError("the image's link holds a control character, a space or a backslash where none can be")
    host, port = _read_authority(authority)
    return Link(scheme, authority, host, port, raw if raw.startswith(b"/") else b"/" + raw)


@functools.lru_cache(maxsize=64)
def _read_authority(authority: str) -> tuple[str, int | None]:
    """Host and port. What is judged here is what is connected to: nobody reads the authority a second time."""
    match = _AUTHORITY.fullmatch(authority)
    if match and not match[1]:
        raise LinkError("the image's link has no host")
    port = int(match[2]) if match and match[2] else None
    if not match or (port or 0) > 65535:
        raise LinkError("the image's link has no valid host")
    try:
        host = _read_host(match[1])
    except ValueError as exc:
        raise LinkError("the image's link has no valid host") from exc
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

    TOS and S3 version 4 give a date and a lifetime, S3 version 2, OSS, COS and CDNs a moment, Azure a moment as text.
    """
    query = {name.lower(): value for name, _, value in (part.partition("=") for part in _query(link).split("&"))}
    for name, value in query.items():
        if name.endswith("-expires") and value.isdecimal() and value.isascii():
            if f"{name.removesuffix('expires')}date" not in query:
                return _epoch(value)
            start = _moment(query[f"{name.removesuffix('expires')}date"], "%Y%m%dT%H%M%SZ")
            return None if start is None else start + int(value[:9])
    for name in ("expires", "e", "exp", "expire", "expiry", "expires_at"):
        if (found := _epoch(query.get(name, ""))) is not None:
            return found
    signed = re.split("%3b|;", query.get("q-sign-time", ""), flags=re.IGNORECASE)
    if len(signed) == 2:
        return _epoch(signed[1])
    return _moment(query.get("se", "").replace("%3a", ":").replace("%3A", ":"), "%Y-%m-%dT%H:%M:%SZ")


def _epoch(text: str) -> int | None:
    """Seconds since 1970, which some write in thousandths; None for a number that is no moment of our time."""
    if not re.fullmatch(r"[0-9]{10}([0-9]{3})?", text):
        return None
    return int(text[:10])


def _query(link: str) -> str:
    return link.partition("?")[2].partition("#")[0]


def _moment(text: str, form: str) -> int | None:
    try:
        return int(dt.datetime.strptime(text, form).replace(tzinfo=dt.UTC).timestamp())
    except (ValueError, OverflowError):
        return None


def absolute(link: str, base_url: str) -> str:
    """A link of a reply to an API, made absolute where it is not: what has no host belongs to the API's own.

    One without a scheme is https, but on this machine, where the API's scheme serves.
    """
    bare = link.strip()
    if not bare or _SCHEME.match(bare):
        return link
    base = split_link(base_url)
    if bare.startswith("//"):
        host = bare[2:].partition("/")[0].rpartition(":")[0] or bare[2:].partition("/")[0]
        return f"{base.scheme if is_loopback(host.strip('[]')) else 'https'}:{bare}"
    return f"{base.scheme}://{base.authority}{'' if bare.startswith('/') else '/'}{bare}"


def next_hop(current: Link, location: str) -> Link:
    """Where a redirect leads, rebuilt from its `Location` alone; LinkError where the image may not be sought there.

    Only https is followed, and never to a nearer network than the one it comes from: a store's answer must not make
    this machine ask its own. The signature of the link before is never carried along.
    """
    location = location.strip()
    if not _SCHEME.match(location):
        location = _absolute(current, location)
    target = split_link(location)
    if target.scheme != "https" and not (target.loopback and current.loopback and current.scheme == "http"):
        raise LinkError(f"{current.host} redirects the image to an address without TLS ({target.host})")
    if _DISTANCE[nearness(target.host)] < _DISTANCE[nearness(current.host)]:
        raise LinkError(f"{current.host} redirects the image to a private address ({target.host})")
    return target


def _absolute(current: Link, location: str) -> str:
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


Nearness = Literal["loopback", "private", "public"]

_DISTANCE: dict[Nearness, int] = {"loopback": 0, "private": 1, "public": 2}

_EMBEDDED = {
    ipaddress.IPv6Network("64:ff9b::/96"): 0,
    ipaddress.IPv6Network("2002::/16"): 80,
    ipaddress.IPv6Network("::/96"): 0,
}
"""IPv6 networks whose addresses hold one of IPv4, and how many bits stand behind it (RFC 6052, 3056, 4291)."""

_STAND_IN = ipaddress.IPv4Network("198.18.0.0/15")
"""Local proxies that take all traffic answer every name with an address of this network."""


def nearness(host: str) -> Nearness:
    """Where a host is, as far as its spelling tells: this machine, a private network, or anywhere else."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return "loopback"
    address = _address(name)
    if address is None:
        return "public"
    if address.is_loopback or address.is_unspecified:
        return "loopback"
    return "public" if address.is_global and not address.is_multicast else "private"


def resolved_nearness(address: str) -> Nearness:
    """As `nearness`, for an address that a name stands for."""
    found = _address(address)
    if isinstance(found, ipaddress.IPv4Address) and found in _STAND_IN:
        return "public"
    return nearness(address)


def may_ask(api: Nearness, target: Nearness) -> bool:
    """Whether a link of an API that is so near may lead so near: no nearer than the API itself is."""
    return _DISTANCE[api] <= _DISTANCE[target]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address a host spells, also in the short and octal forms that resolvers take; None for a name."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if isinstance(address, ipaddress.IPv4Address) or address in {
            ipaddress.IPv6Address(0),
            ipaddress.IPv6Address(1),
        }:
            return address
        if address.ipv4_mapped:
            return address.ipv4_mapped
        shift = next((shift for net, shift in _EMBEDDED.items() if address in net), None)
        return address if shift is None else ipaddress.IPv4Address(int(address) >> shift & 0xFFFF_FFFF)
    with contextlib.suppress(OSError, UnicodeError):
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address; nothing is looked up."""
    name = host.lower().rstrip(".")
    address = _address(name)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)
