"""What went wrong on the way to a host, in words that hold no header and no key."""

from __future__ import annotations

import os
import re
import ssl

from ..errors import causes
from ..storage.system_limits import lack_of
from .http import LostConnectionError, NoConnectionError
from .proxies import Proxy
from .response import BrokenReplyError
from .urls import Link

BROKEN = (NoConnectionError, LostConnectionError, BrokenReplyError, OSError)
"""What ends an exchange of the network's own accord."""

CERTIFICATE_HINT = (
    "behind a company's proxy, name its certificate: SSL_CERT_FILE=/path/to/ca.pem; "
    "else look at --base-url and at this machine's clock"
)

_NUMBERED = re.compile(r"\[Errno (\d+)\]")


def unconnected(exc: Exception, target: Link, reason: str, proxy: Proxy | None) -> tuple[str, str]:
    """Which host was not reached, and what to do about it."""
    if proxy is None or not (isinstance(exc, NoConnectionError) and exc.at_proxy):
        through = f" through the proxy {proxy.where} (from {proxy.source})" if proxy else ""
        hint = CERTIFICATE_HINT if is_distrust(exc) else ""
        return f"no connection to {target.host}{through}: {reason}", hint
    hint = f"check {proxy.source}"
    if not proxy.source.startswith("--"):
        hint += f", or except this host from it: NO_PROXY={target.host}"
    if is_distrust(exc):
        hint = CERTIFICATE_HINT
    elif exc.status == 407:
        hint = f"it wants a user name and a password: http://USER:PASSWORD@HOST:PORT in {proxy.source}"
    where = f"the proxy {proxy.where} (from {proxy.source})"
    if exc.status:
        return f"{where} does not connect to {target.host}: it answered {reason}", hint
    return f"could not connect to {where}: {reason}", hint


def is_deadline(exc: BaseException) -> bool:
    """Whether our own deadline passed. What the system calls a timeout, such as that of a connection, has a number."""
    return isinstance(exc, TimeoutError) and exc.errno is None


def is_distrust(exc: BaseException) -> bool:
    """Whether a certificate was not trusted, the host's or the proxy's."""
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes(exc))


def root_cause(exc: BaseException) -> str:
    """The words of the system's own error under the library's wrappers ("Connection refused"), or the library's."""
    text = str(exc) or type(exc).__name__
    for cause in causes(exc):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate is not trusted ({cause.verify_message})"
        if isinstance(cause, ConnectionError) and cause.errno:
            text = os.strerror(cause.errno)
        elif isinstance(cause, OSError) and not cause.errno and (numbered := _NUMBERED.search(str(cause))):
            # Several addresses of a host were tried: the first one's failure stands for all.
            text = os.strerror(int(numbered[1]))
        elif isinstance(cause, OSError) and cause.strerror:
            text = lack_of(cause) or cause.strerror
    return text
