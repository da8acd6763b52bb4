"""The query of /api/chat: voice, persona, seed, sampling and audio format."""

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplex.runtime.sampling import Sampling
from pplex.server.chat_request import KNOWN, ChatRequest, parse_query
from pplex.server.request import RequestError

VOICES = {"NATF0": 0, "NATF2": 0, "VARM1": 0}
OFFICIAL = (
    "text_temperature=0.7&text_topk=25&audio_temperature=0.8&audio_topk=250&pad_mult=0&text_seed=81274&audio_seed=9921"
    "&repetition_penalty_context=64&repetition_penalty=1&text_prompt=You+are+kind.&voice_prompt=NATF2.pt"
    "&worker_auth_id=abc&email=a%40b.c"
)


def parse(query: str) -> ChatRequest:
    return parse_query(parse_qsl(query, keep_blank_values=True), VOICES)


def refusal(query: str) -> str:
    with pytest.raises(RequestError) as caught:
        parse(query)
    assert caught.value.status == 400
    return str(caught.value)


def test_an_empty_query_gives_the_defaults() -> None:
    request = parse("")
    assert (request.voice, request.persona, request.audio, request.resume) == ("NATF0", "", "opus", None)
    assert request.sampling == Sampling(0.7, 25, 0.8, 250)
    assert request.ignored == ()


def test_query_of_the_official_client_is_parsed() -> None:
    request = parse(OFFICIAL)
    assert (request.voice, request.persona) == ("NATF2", "You are kind.")
    assert request.sampling == Sampling()
    assert request.seed == (81274 << 32) ^ 9921
    assert request.ignored == ()


@pytest.mark.parametrize("name", KNOWN)
def test_an_empty_value_counts_as_missing(name: str) -> None:
    request, default = parse(f"{name}=&seed=7" if name != "seed" else "seed="), parse("seed=7")
    assert (request.voice, request.persona, request.sampling) == (default.voice, default.persona, default.sampling)


def test_without_the_default_voice_the_first_one_speaks() -> None:
    assert parse_query([], {"B": 0, "A": 0}).voice == "B"
    assert parse_query([], {}).voice is None


def test_voice_none_means_no_voice() -> None:
    assert parse("voice_prompt=none").voice is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "NATF0.wav", "NATF9", "..", "NATF0.pt.pt", "\0"])
def test_a_voice_must_be_in_the_bundle(name: str) -> None:
    with pytest.raises(RequestError, match="Unknown voice") as caught:
        parse_query([("voice_prompt", name)], VOICES)
    assert "NATF0, NATF2, VARM1, none" in str(caught.value)


def test_seeds_are_parsed() -> None:
    assert parse("seed=42").seed == 42
    assert parse("seed=42&text_seed=1&audio_seed=2").seed == 42
    assert parse("seed=18446744073709551615").seed == (1 << 64) - 1
    assert parse("text_seed=5").seed == 5
    assert parse("text_seed=1&audio_seed=2").seed != parse("text_seed=2&audio_seed=1").seed
    assert len({parse("seed=-1").seed for _ in range(8)}) > 1
    assert max(parse("").seed for _ in range(8)) < 1 << 32  # every client can represent it


@pytest.mark.parametrize(
    "query, reason",
    [
        ("text_temperature=warm", "text_temperature is 'warm', but must be a number"),
        ("text_temperature=nan", "must be a number"),
        ("audio_temperature=inf", "must be a number"),
        ("audio_temperature=0", "audio_temperature is 0.0, but must be 1e-06"),
        ("text_topk=0", "text_topk is 0, but must be a whole number, 1 to 512"),
        ("audio_topk=513", "audio_topk is 513"),
        ("audio_topk=2.5", "audio_topk is '2.5', but must be a whole number"),
        ("audio_topk=" + "9" * 5000, "must be a whole number"),
        ("seed=-2", "seed is -2"),
        ("seed=1e3", "seed is '1e3'"),
        ("seed=18446744073709551616", "0 to 2^64 - 1"),
        ("pad_mult=x", "pad_mult is 'x'"),
        ("audio=mp3", "audio is 'mp3', but must be opus, s16 or f32"),
        ("early_metadata=yes", "early_metadata is 'yes', but must be 0 or 1"),
        ("resume=k&text_prompt=x", "keeps its settings: leave out text_prompt"),
        ("resume=k&greeting=hello", "keeps its settings: leave out greeting"),
        ("resume=k&snapshot=j", "keeps its settings: leave out snapshot"),
        ("snapshot=k&seed=1&greeting=hello&control=1", "A snapshot has its own settings: leave out greeting, seed"),
        ("control=yes", "control is 'yes', but must be 0 or 1"),
    ],
)
def test_a_bad_value_is_refused_with_its_reason(query: str, reason: str) -> None:
    assert reason in refusal(query)


def test_all_mistakes_are_reported_at_once() -> None:
    reason = refusal("text_topk=0&seed=x&audio=y")
    assert all(name in reason for name in ("text_topk", "seed", "audio"))


def test_a_setting_without_effect_is_named() -> None:
    assert parse("repetition_penalty=1.2&pad_mult=0").ignored == ("repetition_penalty",)


def test_unknown_parameters_are_ignored_and_named() -> None:
    request = parse("voice=NATF2&codec=opus&codec=ogg&seed=1&seed=2&" + "x" * 500 + "=1&caf%C3%A9=%20")
    assert (request.voice, request.seed) == ("NATF0", 1)
    assert request.ignored == ("voice", "codec", "seed", "x" * 57 + "...", "caf\\xe9")


def test_list_of_ignored_names_is_bounded() -> None:
    assert len(parse("&".join(f"x{i}=1" for i in range(1000))).ignored) == 16


@pytest.mark.parametrize(
    "query, knows_us",
    [
        ("", False),
        ("early_metadata=0", False),
        ("early_metadata=1", True),
        ("control=1", True),
        ("audio=s16", True),
        ("audio=opus", False),
    ],
)
def test_queries_of_reference_clients_are_recognised(query: str, knows_us: bool) -> None:
    assert parse(query).knows_us is knows_us


@given(st.lists(st.tuples(st.one_of(st.sampled_from(KNOWN), st.text(max_size=20)), st.text(max_size=200)), max_size=12))
def test_any_query_is_a_request_or_a_readable_refusal(query: list[tuple[str, str]]) -> None:
    try:
        request = parse_query(query, VOICES)
    except RequestError as error:
        assert error.status == 400
        assert str(error).isprintable() and len(str(error)) < 6000
    else:
        assert request.voice in (*VOICES, None)
        assert 0 <= request.seed < 1 << 64
