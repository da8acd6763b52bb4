"""Hosts, origins, tokens and addresses: valid forms are normalised, impossible ones are refused with advice."""

import pytest

from pplex.runtime.errors import ConfigError
from pplex.server.addresses import parse_host, parse_network, parse_origin, parse_token, parse_url


@pytest.mark.parametrize(
    "text, host",
    [
        ("127.0.0.1", "127.0.0.1"),
        (" localhost ", "localhost"),
        ("[::1]", "::1"),
        ("::", "::"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("my_host-1.example.", "my_host-1.example."),
        ("münchen.example", "xn--mnchen-3ya.example"),
    ],
)
def test_valid_hosts_are_accepted(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text, advice",
    [
        ("localhost:8998", "Give --host localhost --port 8998."),
        ("[::1]:8998", "Give --host ::1 --port 8998."),
        ("http://0.0.0.0", "Give --host 0.0.0.0."),
        ("https://example.org:443/talk", "Give --host example.org --port 443."),
        ("a..b", "a..b is not a host"),
        ("a b", "a b is not a host"),
        ("*", "* is not a host"),
        ("x" * 64, "is not a host"),
        ("host:99999", "is not a host"),
        ("1:2:3", "is not a host"),
        ("", "The host is empty"),
        (" ", "The host is empty"),
    ],
)
def test_invalid_hosts_are_refused(text: str, advice: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_host(text)
    assert advice in str(refusal.value)


@pytest.mark.parametrize(
    "text, origin",
    [
        ("https://example.org", "https://example.org"),
        ("https://example.org/", "https://example.org"),
        (" HTTPS://Example.ORG ", "https://example.org"),
        ("https://example.org:443", "https://example.org"),
        ("http://example.org:80/", "http://example.org"),
        ("http://example.org:443", "http://example.org:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("http://[0:0::1]", "http://[::1]"),
        ("https://münchen.example", "https://xn--mnchen-3ya.example"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "*"),
        ("null", "null"),
    ],
)
def test_origins_are_normalised_as_browsers_send_them(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text, advice",
    [
        ("x", "--origin https://x"),
        ("example.org:3000", "--origin https://example.org:3000"),
        ("localhost", "--origin https://localhost"),
        ("https://example.org/talk", "--origin https://example.org"),
        ("https://example.org:8443/?a=1", "--origin https://example.org:8443"),
        ("wss://example.org", "--origin https://example.org"),
        ("https://user@example.org", "--origin https://example.org"),
        ("file:///home/page.html", "--origin null"),
        ("https://*.example.org", "is not an origin"),
        ("https://a.example,https://b.example", "is not an origin"),
        ("https://a.example https://b.example", "is not an origin"),
        ("https://example.org:99999", "is not an origin"),
        ("https://", "is not an origin"),
        ("http://[evil", "is not an origin"),
        ("", "is not an origin"),
    ],
)
def test_invalid_origins_are_refused(text: str, advice: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_origin(text)
    assert str(refusal.value).endswith(advice) or advice in str(refusal.value)


@pytest.mark.parametrize("token", ["", " ", "a\n", " a", "a\tb", "a\0", "schlüssel", "鍵"])
def test_tokens_unfit_for_a_header_are_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="A token"):
        parse_token(token)
    assert parse_token("a token: ~!?&=") == "a token: ~!?&="


@pytest.mark.parametrize("url", ["http://localhost:8998", "wss://example.org/a/path/api/chat", "http://[::1]:1"])
def test_server_addresses_are_parsed(url: str) -> None:
    assert parse_url(f" {url} ") == url


@pytest.mark.parametrize(
    "url, words",
    [
        ("localhost:8998", "is not the address of a server"),
        ("ftp://localhost", "is not the address of a server"),
        ("http://a..b", "is not the address of a server"),
        ("http://localhost:x", "is not the address of a server"),
        ("https://localhost/?token=secret", "Give https://localhost/, and a token with --token."),
        ("https://user:secret@localhost:1", "Give https://localhost:1, and a token with --token."),
    ],
)
def test_invalid_server_addresses_are_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_url(url)
    assert words in str(refusal.value) and "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "text, network",
    [
        ("127.0.0.1", "127.0.0.1/32"),
        (" 10.1.2.3/8 ", "10.0.0.0/8"),
        ("::1", "::1/128"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),  # an IPv4 address on an IPv6 socket
        ("::ffff:127.0.0.1", "127.0.0.1/32"),
    ],
)
def test_a_network_is_an_address_or_a_range(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize("text", ["localhost", "10.0.0.0/33", "", "1.2.3"])
def test_invalid_networks_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not an IP address or network"):
        parse_network(text)
