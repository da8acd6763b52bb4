"""Servers of bundles without voices: of a Moshi model, which takes no prompt, and of a PersonaPlex model."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from answers import expected, is_close
from callers import Caller, ask, call, run, speech
from serving import Running, serving

from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Runtime
from pplex.server.client import Audio, connect

ARGUMENTS = ("--slots", "2", "--one-batch-size")
USER = speech(20)


@pytest.fixture(scope="module")
def of_moshi(moshi_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(moshi_bundle.folder, tmp_path_factory.mktemp("moshi"), *ARGUMENTS) as running:
        yield running


@pytest.fixture(scope="module")
def of_personaplex(voiceless_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(voiceless_bundle.folder, tmp_path_factory.mktemp("voiceless"), *ARGUMENTS) as running:
        yield running


async def converse(url: str, **query: str) -> Caller:
    async with call(url, **query) as caller:
        await (await caller.handshake()).talk(USER)
        return caller


@pytest.mark.parametrize(
    "query, ignored",
    [
        ({}, []),
        (
            {"voice_prompt": "NATF2.pt", "text_prompt": "You are kind."},
            ["voice_prompt", "text_prompt"],
        ),  # reference client
        ({"voice_prompt": "none", "pad_mult": "1"}, ["voice_prompt", "pad_mult"]),
    ],
)
def test_moshi_ignores_a_prompt_and_says_so(
    of_moshi: Running, moshi_bundle: Bundle, query: dict[str, str], ignored: list[str]
) -> None:
    caller = run(converse(of_moshi.url, seed="42", **query))
    pcm, text = expected(Runtime(moshi_bundle, slots=2, threads=1, batches=[2]), USER, None, "", 42)
    assert is_close(caller.heard(), pcm) and caller.text == text != ""
    assert (caller.session["voice"], caller.session["ignored"]) == (None, ignored)


def test_conversations_of_moshi_do_not_disturb_each_other(of_moshi: Running, moshi_bundle: Bundle) -> None:
    async def both() -> list[Caller]:
        return await asyncio.gather(converse(of_moshi.url, seed="1"), converse(of_moshi.url, seed="2"))

    alone = Runtime(moshi_bundle, slots=2, threads=1, batches=[2])
    for seed, caller in enumerate(run(both()), start=1):
        assert is_close(caller.heard(), expected(alone, USER, None, "", seed)[0])


def test_our_client_talks_to_moshi(of_moshi: Running) -> None:
    async def conversation() -> int:
        async with connect(of_moshi.url, seed=3) as client:
            return sum([isinstance(event, Audio) async for event in client.play(USER.reshape(-1))])

    assert run(conversation()) == len(USER)


def test_a_personaplex_model_without_voices_takes_a_persona(of_personaplex: Running, voiceless_bundle: Bundle) -> None:
    caller = run(converse(of_personaplex.url, text_prompt="You are kind.", seed="42"))
    alone = Runtime(voiceless_bundle, slots=2, threads=1, batches=[2])
    assert is_close(caller.heard(), expected(alone, USER, None, "You are kind.", 42)[0])
    assert (caller.session["voice"], caller.session["ignored"]) == (None, [])


@pytest.mark.parametrize("name", ["NATF0", "NATF2.pt"])
def test_a_voice_that_is_not_there_is_refused(of_personaplex: Running, name: str) -> None:
    answer = ask(of_personaplex, f"/api/chat?voice_prompt={name}", method="POST")
    assert answer[0] == 400
    assert "This server has no voices: leave voice_prompt out, or send none." in answer[1]


def test_the_page_learns_whether_there_is_a_prompt(of_moshi: Running, of_personaplex: Running) -> None:
    found = [json.loads(server.get("/api/info")[1]) for server in (of_moshi, of_personaplex)]
    assert [(info["voices"], info["takes_prompt"]) for info in found] == [([], False), ([], True)]
