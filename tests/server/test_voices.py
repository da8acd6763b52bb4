"""A server keeps the voices that it has loaded while a bundle's voices change."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from answers import expected, is_close
from callers import Caller, call, run, speech
from folders import TINY
from serving import MAIN, serving

from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.session import Runtime

WAV = TINY / "checkpoint/voices/synthetic.wav"


def test_a_running_server_is_not_disturbed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A conversation before, one that lasts through the changes, and one after them with a voice that was removed."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for path in tiny_bundle.folder.iterdir():
        (bundle / path.name).symlink_to(path)
    user = speech(12)
    alone = Runtime(tiny_bundle, slots=2, threads=1, batches=[2])
    pcm, _ = expected(alone, user, "NATM1", "You are kind.", 42)

    async def change(*arguments: str | Path) -> None:
        command = [sys.executable, "-c", MAIN, "voices", *map(str, arguments)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    async def converse(caller: Caller) -> None:
        assert is_close(await (await caller.handshake()).talk(user), pcm)

    async def through_changes(url: str) -> None:
        query = {"voice_prompt": "NATM1", "text_prompt": "You are kind.", "seed": "42"}
        async with call(url, **query) as caller:
            await caller.handshake()
            talking = asyncio.ensure_future(caller.talk(user))
            await change("add", bundle, "Ann", WAV)
            await change("remove", bundle, "NATM1")
            assert is_close(await talking, pcm)
        async with call(url, **query) as caller:
            await converse(caller)

    with serving(bundle, tmp_path, "--slots", "2", "--one-batch-size") as server:
        run(through_changes(server.url))
        assert json.loads(server.get("/api/info")[1])["voices"] == ["NATF0", "NATM1", "VARF2"]
    assert list(open_bundle(bundle).voices) == ["Ann", "NATF0", "VARF2"]
