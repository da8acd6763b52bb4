"""Signatures of Twilio, compared with examples that Twilio's own library for Python (9.13.0) has made."""

import pytest

from pplex.server.twilio_signature import is_signed, signature_of

AUTH_TOKEN = "0123456789abcdef0123456789abcdef"
ADDRESS = "wss://voice.example/twilio"
SIGNATURES = {
    "wss://voice.example/twilio": "PlMhxO78tFXBQmhgpvK9MQ+oPQE=",
    "wss://voice.example:443/twilio": "n5GHdXZw0uDE1kbEyA8FGxf1MF4=",
    "wss://voice.example/twilio/": "jX9BKehCw3cS7c9R/9/NHKRFO+Q=",
    "https://voice.example/twilio": "n/bTrBhJ9AAAf/I1341zvknLmHk=",
    "wss://voice.example:8443/twilio": "AGviNx/nmrnlRU2zWZglxu+LXWE=",
    "wss://[2001:db8::1]:8443/prefix/twilio": "WNbhV7XvRHJ9OtuFPUmLf/4Wyc4=",
    "wss://other.example/twilio": "RFEkzmoZN0U933lMcSZrhDs4RuM=",
}


@pytest.mark.parametrize("address", SIGNATURES)
def test_signatures_are_those_of_twilios_library(address: str) -> None:
    assert signature_of(address, AUTH_TOKEN).decode() == SIGNATURES[address]
    assert is_signed(SIGNATURES[address], [address], AUTH_TOKEN)


def test_every_spelling_of_an_address_is_accepted() -> None:
    """Twilio's library says that its service is not consistent in the port."""
    for address in ("https://voice.example/twilio", "wss://voice.example:443/twilio", "wss://voice.example/twilio/"):
        assert is_signed(SIGNATURES[address], ["http://nowhere.example", ADDRESS], AUTH_TOKEN)
    without_port = signature_of("wss://voice.example/twilio", AUTH_TOKEN).decode()
    assert is_signed(without_port, ["wss://voice.example:8443/twilio"], AUTH_TOKEN)


def test_anything_else_is_refused() -> None:
    signature = SIGNATURES[ADDRESS]
    other = SIGNATURES["wss://other.example/twilio"]
    for wrong in ("", "x", signature[:-1], signature.lower(), f"{signature} ", other, "é", "\udcff", signature * 1000):
        assert not is_signed(wrong, [ADDRESS], AUTH_TOKEN), wrong
    assert not is_signed(signature, [ADDRESS], AUTH_TOKEN.upper())
    assert not is_signed(SIGNATURES["wss://voice.example:8443/twilio"], [ADDRESS], AUTH_TOKEN)
    assert not is_signed(signature, [], AUTH_TOKEN)


@pytest.mark.parametrize("host", ["", "voice.example:x", "[", "a:99999999", "\udcff", "a b", "voice.example:443:443"])
def test_a_strange_host_is_not_signed(host: str) -> None:
    assert not is_signed(SIGNATURES[ADDRESS], [f"wss://{host}/twilio"], AUTH_TOKEN)
