"""Which proxy stands before an address, whose fault it is where none is reached, and that nothing was paid then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.errors import ConfigError
from seedream_cli.network.proxies import Proxies, Proxy, is_excepted
from tests.support.command import CANARY, Command
from tests.support.raw_server import RawServer, Tunnel, answer, free_port, make_certificate

AWAY = ("generate", "a fox", "-p", "openai", "-m", "4.5", "--base-url", "https://gateway.invalid/v1", "--retries", "0")
KEYED = {"OPENAI_API_KEY": CANARY}


# --- which one --------------------------------------------------------------------------------------------------------

CHOICES: list[tuple[dict[str, str], str, str | None]] = [
    ({"ALL_PROXY": "socks://h:9", "HTTPS_PROXY": "http://good:1"}, "https", "HTTPS_PROXY"),
    ({"ALL_PROXY": "http://h:9", "HTTPS_PROXY": "http://good:1"}, "http", "ALL_PROXY"),
    ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "https", "https_proxy"),
    ({"https_proxy": "", "HTTPS_PROXY": "http://b:1"}, "https", None),
    ({"https_proxy": "", "all_proxy": "http://b:1"}, "https", "all_proxy"),
    ({"HTTP_PROXY": "http://b:1"}, "https", None),
    ({"HTTP_PROXY": "http://b:1"}, "http", "HTTP_PROXY"),
    ({"HTTP_PROXY": "http://b:1", "REQUEST_METHOD": "GET"}, "http", None),
    ({"HTTPS_PROXY": "nonsense://", "NO_PROXY": "api.example.com"}, "https", None),
    ({}, "https", None),
]


@pytest.mark.parametrize(("environ", "scheme", "name"), CHOICES, ids=str)
def test_proxy_is_that_of_the_scheme(environ: dict[str, str], scheme: str, name: str | None) -> None:
    """Its own variable first, the lower case before the upper, as curl reads them."""
    found = Proxies(environ).of(scheme, "api.example.com", None)
    assert (found and found.source) == name


EXCEPTED = [
    ("*", "any.example", True),
    ("example.com", "example.com", True),
    ("example.com", "www.example.com", True),
    ("example.com", "badexample.com", False),
    (".example.com", "a.example.com", True),
    ("*.example.com", "a.example.com", True),
    ("EXAMPLE.com.", "Api.Example.COM", True),
    ("example.com", "example.com.", True),
    ("a, example.com ,b", "example.com", True),
    ("a example.com", "example.com", True),
    ("example.com:8443", "example.com", False),
    ("example.com:443", "example.com", True),
    ("10.0.0.0/8", "10.3.4.5", True),
    ("10.0.0.0/8", "11.3.4.5", False),
    ("10.1.2.3/8", "10.3.4.5", True),
    ("10.0.0.5", "10.0.0.5", True),
    ("0.0.5", "10.0.0.5", False),
    ("10.0.0.5:443", "10.0.0.5", True),
    ("fd00::/8", "[fd12::1]", True),
    ("fd00::/8", "fe12::1", False),
    ("[::1]", "::1", True),
    ("[::1]:443", "::1", True),
    ("[::1]:80", "::1", False),
    ("::1", "[0:0:0:0:0:0:0:1]", True),
    ("10.0.0.0/8", "::ffff:10.1.1.1", True),
    ("10.0.0.0/99, nonsense/x, [, :, .", "10.1.1.1", False),
    (".", "example.com", False),
    ("", "example.com", False),
]


@pytest.mark.parametrize(("rules", "host", "excepted"), EXCEPTED, ids=str)
def test_no_proxy_is_read_as_curl_and_go_read_it(rules: str, host: str, excepted: bool) -> None:
    """Networks, ports, brackets, dots in front and behind; a name ends at a dot."""
    assert is_excepted(host, 443, rules) is excepted


@pytest.mark.parametrize(
    "url",
    [
        "gopher://me:hunter2@h:1",
        "socks4://me:hunter2@h:1",
        "http://",
        "http://me:hunter2@",
        "http://me:hunter2@h:port",
        "http://me:hunter2@h:99999",
        "http://h:0",
        "ht tp://me:hunter2@h",
        "me:hunter2@h h:1",
        "http://me:hunter2@[::1:3",
    ],
)
def test_an_unusable_proxy_names_its_variable_and_no_password(url: str) -> None:
    """Whatever is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        Proxy(url, "HTTPS_PROXY").usable_url()
    told = f"{caught.value.message} {caught.value.hint} {Proxy(url, 'x')!r}"
    assert "HTTPS_PROXY" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("url", "usable"),
    [
        ("h:3128", "http://h:3128"),
        ("HTTP://h:3128/", "http://h:3128"),
        ("http://me:p@ss/w@h:1", "http://me:p%40ss%2Fw@h:1"),
        ("http://me:p%40ss@[::1]:1", "http://me:p%40ss@[::1]:1"),
        ("https://h", "https://h"),
    ],
)
def test_a_usable_proxy_is_spelled_in_one_way(url: str, usable: str) -> None:
    """Without a scheme it is http; signs in a password are no part of the address."""
    assert Proxy(url, "x").usable_url() == usable


# --- on the wire ------------------------------------------------------------------------------------------------------


def test_a_desktops_socks_variable_does_not_stop_a_run(seedream: Command) -> None:
    """Beside a good HTTPS_PROXY it is never looked at; alone it is read as SOCKS 5."""
    with Tunnel() as proxy:
        env = {
            **KEYED,
            "ALL_PROXY": "socks://127.0.0.1:9",
            "all_proxy": "socks://127.0.0.1:9",
            "HTTPS_PROXY": proxy.url,
        }
        done = seedream(*AWAY, env=env)
        assert [request.method for request in proxy.requests] == ["CONNECT"]
    assert done.code == 6
    done = seedream(*AWAY, env={**KEYED, "all_proxy": "socks://me:hunter2@127.0.0.1:9"})
    assert (done.code, "all_proxy" in done.err) in {(3, True), (6, True)}
    assert "hunter2" not in done.err


PROXIES: list[tuple[Any, str, bool]] = [
    (None, "could not connect to the proxy", True),
    (answer(b"<html>", status=502), "does not connect to gateway.invalid: it answered 502", True),
    (answer(b"", status=407), "does not connect to gateway.invalid: it answered 407", False),
    (answer(b"", status=403), "does not connect to gateway.invalid: it answered 403", False),
]


@pytest.mark.parametrize(("reply", "said", "retryable"), PROXIES, ids=lambda case: str(case)[:30])
def test_a_proxy_that_fails_is_the_proxys_fault(seedream: Command, reply: Any, said: str, retryable: bool) -> None:
    """Named with its variable; nothing was sent or billed, since the request comes after the tunnel."""
    with RawServer(*([reply] if reply else [])) as server:
        port = server.port if reply else free_port()
        env = {**KEYED, "HTTPS_PROXY": f"http://me:hunter2@127.0.0.1:{port}"}
        done = seedream(*AWAY, "--json", env=env)
        assert {request.method for request in server.requests} == ({"CONNECT"} if reply else set())
    error = done.json["error"]
    assert (done.code, error["code"], error["billed"], error["retryable"]) == (6, "network", "no", retryable)
    assert said in error["message"]
    assert f"127.0.0.1:{port} (from HTTPS_PROXY)" in error["message"]
    assert "HTTPS_PROXY" in error["hint"]
    assert "hunter2" not in done.out + done.err


def test_no_proxy_holds_on_the_wire(seedream: Command) -> None:
    """As a network and with the port, which the client's own reading does not know."""
    with Tunnel() as proxy:
        url = f"https://127.0.0.1:{free_port()}/v1"
        args = (*AWAY[:6], "--base-url", url, "--retries", "0")
        for rules, count in (("127.0.0.0/8", 0), (url[8:-3], 0), ("127.0.0.1:1", 1)):
            seedream(*args, env={**KEYED, "HTTPS_PROXY": proxy.url, "NO_PROXY": rules})
            assert len(proxy.requests) == count


def test_a_certificate_nobody_trusts_gets_the_way_out(seedream: Command, tmp_path: Path) -> None:
    """Directly and through a proxy, which is not to blame for it."""
    certificate = make_certificate(tmp_path)
    if certificate is None:
        pytest.skip("openssl is not here to make a certificate")
    with RawServer(answer(b"{}"), tls=certificate.server_context()) as server, Tunnel() as proxy:
        args = (*AWAY[:6], "--base-url", server.url, "--retries", "0", "--json")
        for env in ({}, {"HTTPS_PROXY": proxy.url}):
            done = seedream(*args, env={**KEYED, **env})
            error = done.json["error"]
            assert (done.code, error["billed"]) == (6, "no")
            assert "the certificate is not trusted" in error["message"]
            assert "could not connect to the proxy" not in error["message"]
            assert "SSL_CERT_FILE" in error["hint"]
        assert not server.requests
        assert re.search(r"through the proxy 127\.0\.0\.1:\d+ \(from HTTPS_PROXY\)", error["message"])
