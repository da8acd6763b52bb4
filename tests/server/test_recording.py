"""Recordings of conversations."""

from pathlib import Path

import numpy as np
import soundfile
from callers import FRAME, call, run, speech
from serving import Serve


def test_a_recording_holds_both_sides(serve: Serve, tmp_path: Path) -> None:
    user = speech(10)

    async def visit(url: str) -> tuple[str, np.ndarray]:
        async with call(url) as caller:
            heard = await (await caller.handshake()).talk(user)
            return caller.session["id"], heard

    with serve("--record", str(tmp_path / "kept")) as server:
        identity, heard = run(visit(server.url))
        path = tmp_path / "kept" / f"{identity}.flac"
        server.wait_for(path.exists)
    stereo, rate = soundfile.read(path, dtype="float32")
    assert rate == 24_000 and stereo.shape == (10 * FRAME, 2)
    assert np.abs(stereo[:, 0] - user.ravel()).max() < 1e-4
    assert np.abs(stereo[:, 1] - np.clip(heard.ravel(), -1, 1)).max() < 1e-4
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [f"{identity}.flac"]


FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"  # no file may be larger


def test_a_full_disk_ends_the_recording_and_not_the_conversation(serve: Serve, tmp_path: Path) -> None:
    async def visit(url: str) -> None:
        async with call(url) as caller:
            assert len(await (await caller.handshake()).talk(speech(15))) == 15

    with serve("--record", str(tmp_path), prelude=FULL_DISK) as server:
        run(visit(server.url))
        server.wait_for(lambda: server.state()["used"] == 0)
        assert [event["event"] for event in server.events() if event["level"] == "error"] == ["a recording ended early"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
