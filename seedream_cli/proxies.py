"""Which proxy stands between, by the user's word or the environment's; its password is never shown."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator


def environment_proxies() -> Iterator[str]:
    """Every proxy that the environment names, for whatever it is."""
    found = urllib.request.getproxies()
    return (found[name] for name in ("http", "https", "all") if found.get(name))


def environment_proxy(scheme: str) -> str:
    """The environment's proxy for addresses of this scheme; "" for none."""
    found = urllib.request.getproxies()
    return found.get(scheme) or found.get("all") or ""


def is_bypassed(host: str) -> bool:
    """Whether the environment excepts this host from its proxies."""
    return bool(urllib.request.proxy_bypass(host))


def proxy_host(proxy: str, *, port: bool = False) -> str:
    """The host of a proxy's address, never its password."""
    authority = proxy.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
    if port:
        return authority
    return authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]
