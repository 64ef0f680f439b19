"""Which proxy stands between, by the user's word or the environment's; its password is never shown."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError

_SCHEMES = {"http": "http", "https": "https", "socks5": "socks5", "socks5h": "socks5h", "socks": "socks5"}
"""How a proxy is spoken to, by the scheme of its address: desktops write `socks` for what is SOCKS 5."""

_WAY_OUT = "http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT"

SYSTEM = "the system's settings"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy as it was named: its address, which may hold a password, and by what (a variable, an option)."""

    url: str
    source: str

    def __repr__(self) -> str:
        """Without the address, so that no traceback or log can hold its password."""
        return f"Proxy({self.where!r}, {self.source!r})"

    @property
    def where(self) -> str:
        """Host and port, for a message."""
        return proxy_host(self.url, port=True)

    @property
    def host(self) -> str:
        """The host alone."""
        return proxy_host(self.url)

    def usable_url(self) -> str:
        """The address in the one spelling that is taken everywhere. Raises `ConfigError` where it cannot be used."""
        scheme, mark, rest = self.url.strip().rpartition("://")
        scheme = scheme.lower() if mark else "http"
        authority = re.split(r"[/?#]", rest.rpartition("@")[2] if "@" in rest else rest, maxsplit=1)[0]
        user = rest.rpartition("@")[0]
        shown = f"{scheme}://{authority}" if re.fullmatch(r"[a-z0-9+.-]+", scheme) else authority
        if scheme not in _SCHEMES:
            message = f"the proxy {shown} ({self.source}) cannot be used: it is not known how to speak to it"
            raise ConfigError(message, hint=f"{self._unset()}; proxies are {_WAY_OUT}")
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]\\\"<>^`{|}]+)(?::([0-9]{1,5}))?", authority)
        if found is None or not _is_port(found[2]):
            message = f"the proxy in {self.source} cannot be used: its address is no HOST:PORT"
            raise ConfigError(message, hint=f"{self._unset()}; proxies are {_WAY_OUT}")
        if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            message = f"the proxy {shown} ({self.source}) needs support for SOCKS, which is not installed"
            raise ConfigError(message, hint=f'pip install "seedream[socks]" adds that; or {self._unset()}')
        name, colon, password = user.partition(":")
        quoted = [urllib.parse.quote(urllib.parse.unquote(text), safe="") for text in (name, password)]
        info = (":".join(quoted) if colon else quoted[0]) + "@" if user else ""
        return f"{_SCHEMES[scheme]}://{info}{authority}"

    def _unset(self) -> str:
        """What to do about it."""
        return (
            f"correct or leave out {self.source}" if self.source.startswith("--") else f"correct or unset {self.source}"
        )


def _is_port(text: str | None) -> bool:
    return text is None or 0 < int(text) < 65_536


class Proxies:
    """The proxies of a run: the one that was named for all, else those of the environment by what is asked for."""

    def __init__(self, environ: Mapping[str, str], named: str | None = None, source: str = "--proxy") -> None:
        self._named = Proxy(named, source) if named else None
        self._found = {} if self._named else _read(environ)
        self._excepted = environ.get("no_proxy") or environ.get("NO_PROXY") or ""

    @property
    def is_named(self) -> bool:
        """Whether the user named one for all."""
        return self._named is not None

    def of(self, scheme: str, host: str, port: int | None) -> Proxy | None:
        """What stands before an address: only the proxy for its own scheme counts, else the one for all."""
        if self._named:
            return self._named
        proxy = self._found.get(scheme) or self._found.get("all")
        if proxy is None or is_excepted(host, port or (443 if scheme == "https" else 80), self._excepted):
            return None
        if proxy.source == SYSTEM and urllib.request.proxy_bypass(host):
            return None
        return proxy


def _read(environ: Mapping[str, str]) -> dict[str, Proxy]:
    """Each scheme's proxy. The lower case comes first, and empty it means none, as for curl.

    HTTP_PROXY in capitals is what a web server calls a header of its client's (REQUEST_METHOD tells of one).
    """
    found = dict[str, Proxy]()
    for scheme in ("http", "https", "all"):
        lower, upper = f"{scheme}_proxy", f"{scheme}_proxy".upper()
        name = lower if lower in environ else upper
        if name == "HTTP_PROXY" and "REQUEST_METHOD" in environ:
            continue
        if value := environ.get(name, "").strip():
            found[scheme] = Proxy(value, name)
    if not found:
        system = urllib.request.getproxies()
        names = {"http": "http", "https": "https", "all": "all", "socks": "all"}
        found = {names[key]: Proxy(value, SYSTEM) for key, value in system.items() if key in names and value}
    return found


def is_excepted(host: str, port: int, rules: str) -> bool:
    """Whether NO_PROXY names this host, as curl and Go read it.

    Names hold for what is below them too; addresses may be networks (10.0.0.0/8, fd00::/8); either may have a port.
    """
    host = host.strip("[]").rstrip(".").lower().partition("%")[0]
    address = _address(host)
    return any(_is_named(host, address, port, rule) for rule in re.split(r"[,\s]+", rules.lower()) if rule)


def _is_named(host: str, address: _Address | None, port: int, rule: str) -> bool:
    if rule == "*":
        return True
    rule = rule.rpartition("://")[2]
    bracketed = re.fullmatch(r"\[([^\]]*)\](/[0-9]+)?(?::([0-9]+))?", rule)
    if bracketed:
        rule, wanted = bracketed[1] + (bracketed[2] or ""), bracketed[3] or ""
    elif rule.count(":") == 1:
        rule, _, wanted = rule.partition(":")
    else:
        wanted = ""
    if wanted and wanted != str(port):
        return False
    if address is not None:
        return _holds(rule, address)
    name = rule.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(text: str) -> _Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _holds(rule: str, address: _Address) -> bool:
    """Whether an address is the rule's, or in its network."""
    if "/" not in rule:
        return _address(rule) == address
    try:
        return address in ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False


def proxy_host(proxy: str, *, port: bool = False) -> str:
    """The host of a proxy's address, never its password."""
    authority = re.split(r"[/?#]", proxy.rpartition("://")[2].rpartition("@")[2], maxsplit=1)[0]
    if port:
        return authority
    return authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]
