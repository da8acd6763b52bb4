"""Saved sessions: forks and files continue bit for bit, in any slot, batch size and process."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conversations import FRAMES, PCM, PERSONA, Heard, assert_same, finish, heard, small_runtime, talk
from safetensors.numpy import load_file, save_file

from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import AccessError, OutputError, PromptError, SlotError, SnapshotError
from pplex.runtime.sampling import GREEDY, Sampling
from pplex.runtime.session import Runtime, Session
from pplex.runtime.snapshot import Snapshot

BEFORE = 40  # the tiny ring is full 20 to 30 frames later

CONTINUE = """
import sys
import numpy as np
from pplex.runtime import Runtime
from pplex.runtime.snapshot import Snapshot

runtime = Runtime.load(sys.argv[1], slots=3, threads=1, batches=[3])
runtime.open(None, "", seed=1)  # another slot than before
session = runtime.open(snapshot=Snapshot.load(sys.argv[2]))
replies = [session.step(frame) for frame in np.load(sys.argv[3])]
np.savez(sys.argv[4], tokens=[reply.tokens for reply in replies], pcm=[reply.pcm for reply in replies])
assert "torch" not in sys.modules
"""


def both(runtime: Runtime, first: Session, second: Session, pcm: np.ndarray) -> tuple[Heard, Heard]:
    """Two sessions hear the same, in the same calls."""
    replies = [runtime.step({first: frame, second: frame}) for frame in pcm]
    return heard([each[first] for each in replies]), heard([each[second] for each in replies])


@pytest.mark.parametrize("before", [0, 1, BEFORE, 250])
def test_a_fork_and_its_original_stay_equal_for_300_frames(three: Runtime, before: int) -> None:
    with three.open("NATF0", PERSONA, seed=7) as session:
        for frame in PCM[1, :before]:
            session.step(frame)
        with three.open(snapshot=session.snapshot()) as fork:
            assert fork.row != session.row and fork.frame == before
            original, forked = both(three, session, fork, PCM[0])
        assert original == forked and len(forked.tokens) == FRAMES


def test_a_fork_that_hears_something_else_goes_its_own_way(three: Runtime, alone: Heard) -> None:
    with three.open("NATF0", PERSONA, seed=7) as session:
        talk(session, PCM[0, :BEFORE])
        snapshot = session.snapshot()
        plain = talk(session, PCM[0, BEFORE:])
    with three.open(snapshot=snapshot) as first, three.open(snapshot=snapshot) as second:
        replies = [three.step({first: PCM[0, i], second: PCM[1, i]}) for i in range(BEFORE, FRAMES)]
        assert heard([each[first] for each in replies]) == plain
        assert heard([each[second] for each in replies]) != plain


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.3, 80, 1.1, 400)])
def test_sampling_text_and_orders_are_saved(three: Runtime, sampling: Sampling) -> None:
    with three.open("NATM1", PERSONA, seed=9, sampling=sampling) as session:
        session.say("good night my friend", gap=2)
        session.say("stop here", when="pause")
        talk(session, PCM[0, :5])
        with three.open(snapshot=session.snapshot()) as fork:
            assert (fork.seed, fork.sampling) == (session.seed, session.sampling)
            original, forked = both(three, session, fork, PCM[0, 5:60])
        assert original == forked and "friend" in "".join(forked.text)
        session.hold()
        with three.open(snapshot=session.snapshot()) as fork:
            talk(fork, PCM[0, :2])
            assert (talk(fork, PCM[0, 2:6]).tokens[:, 0] == 3).all()


def test_a_fork_can_be_rebuilt_and_rewound_as_its_original(three: Runtime) -> None:
    with three.open(None, "", seed=9) as session:
        talk(session, PCM[0, :60])
        with three.open(snapshot=session.snapshot()) as fork:
            for each in (session, fork):
                each.rebuild(keep_seconds=1)
            both(three, session, fork, PCM[0, 60:70])
            for each in (session, fork):
                each.rewind(0.4)
            original, forked = both(three, session, fork, PCM[0, 70:90])
        assert original == forked


def test_a_file_continues_in_another_process_and_slot(tiny_bundle: Bundle, three: Runtime, tmp_path: Path) -> None:
    with three.open("NATF0", PERSONA, seed=7) as session:
        talk(session, PCM[0, :BEFORE])
        session.snapshot().save(tmp_path / "session")
        expected = talk(session, PCM[0, BEFORE:])
    np.save(tmp_path / "pcm.npy", PCM[0, BEFORE:])
    arguments = [str(tiny_bundle.folder), *(str(tmp_path / name) for name in ("session", "pcm.npy", "said.npz"))]
    subprocess.run([sys.executable, "-c", CONTINUE, *arguments], check=True)
    said = np.load(tmp_path / "said.npz")
    assert np.array_equal(said["tokens"], expected.tokens) and np.array_equal(said["pcm"], expected.pcm)


def test_another_batch_size_takes_the_same_state(three: Runtime, eight: Runtime) -> None:
    with three.open("NATF0", PERSONA, seed=7) as session:
        talk(session, PCM[0, :BEFORE])
        snapshot = session.snapshot()
    with eight.open(snapshot=snapshot) as other:
        again = other.snapshot()
        assert json.dumps(dict(again.facts)) == json.dumps(dict(snapshot.facts))
        assert_same(dict(again.arrays), dict(snapshot.arrays))


def test_other_sessions_do_not_change(three: Runtime) -> None:
    with three.open("NATF0", PERSONA, seed=7) as session:
        expected = talk(session, PCM[0, :60])
    with three.open("NATF0", PERSONA, seed=7) as session, three.open(None, "", seed=8) as other:
        replies = [three.step({session: frame, other: frame})[session] for frame in PCM[0, :30]]
        snapshot = other.snapshot()
        with three.open(snapshot=snapshot):
            other.rewind(1)
            replies += [three.step({session: frame, other: frame})[session] for frame in PCM[0, 30:60]]
    assert heard(replies) == expected


def test_a_full_runtime_refuses_a_snapshot(one: Runtime) -> None:
    with one.open(None, "", seed=1) as session, pytest.raises(SlotError, match="taken"):
        one.open(snapshot=session.snapshot())
    with pytest.raises(SlotError, match="closed"):
        session.snapshot()


@pytest.fixture
def file(one: Runtime, tmp_path: Path) -> Path:
    with one.open(None, "", seed=1) as session:
        talk(session, PCM[0, :5])
        session.snapshot().save(tmp_path / "session")
    return tmp_path / "session"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def shorten_to_nothing(file: Path) -> None:
    file.write_bytes(b"")


def change_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)


def change_a_fact(file: Path) -> None:
    content = file.read_bytes()
    assert b'\\"frame\\": 5' in content
    file.write_bytes(content.replace(b'\\"frame\\": 5', b'\\"frame\\": 6', 1))


def save_voices_instead(file: Path) -> None:
    save_file({"embeddings": np.zeros(3)}, file)


@pytest.mark.parametrize("damage", [truncate, shorten_to_nothing, change_a_byte, change_a_fact, save_voices_instead])
def test_a_damaged_file_is_refused(file: Path, damage: Callable[[Path], None]) -> None:
    damage(file)
    with pytest.raises(SnapshotError, match=r"snapshot|damaged"):
        Snapshot.load(file)


def test_any_changed_bit_of_the_header_is_refused(file: Path) -> None:
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    for at in range(0, end, 7):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(SnapshotError):
            Snapshot.load(file)


def test_settings_that_are_numpy_numbers_are_saved(three: Runtime, tmp_path: Path) -> None:
    sampling = Sampling(np.float32(0.5), np.int64(9), np.float32(0.5), np.int64(9))
    with three.open(None, "", seed=np.int64(1), sampling=sampling) as session:
        session.say("good", gap=np.int64(2))
        session.snapshot().save(tmp_path / "session")
    with three.open(snapshot=Snapshot.load(tmp_path / "session")) as session:
        assert session.sampling == sampling


@pytest.mark.parametrize(
    "persona, voice, message", [(PERSONA, "NATF0", "Unknown voice"), (list(range(4, 84)), None, "takes")]
)
def test_a_session_that_the_memory_window_could_not_rebuild_is_refused(
    roomy_bundle: Bundle, persona: str | list[int], voice: str | None, message: str
) -> None:
    with small_runtime(roomy_bundle).open(voice, persona, seed=1) as session:
        snapshot = session.snapshot()
    windowed = small_runtime(roomy_bundle, memory_window=100)
    if voice is not None:
        windowed.bundle.voices.clear()
    with pytest.raises(PromptError, match=message):
        windowed.open(snapshot=snapshot)
    windowed.open(None, "", seed=1).close()


def test_missing_files_and_folders_are_refused(tmp_path: Path, one: Runtime) -> None:
    with pytest.raises(SnapshotError, match="does not exist"):
        Snapshot.load(tmp_path / "nothing")
    with pytest.raises((SnapshotError, AccessError)):
        Snapshot.load(tmp_path)
    with one.open(None, "", seed=1) as session, pytest.raises(OutputError, match="cannot be written"):
        session.snapshot().save(tmp_path / "no folder" / "session")
    assert not list(tmp_path.iterdir())


def test_a_snapshot_of_another_bundle_is_refused(file: Path, moshi_bundle: Bundle) -> None:
    runtime = small_runtime(moshi_bundle)
    with pytest.raises(SnapshotError, match="another bundle"):
        runtime.open(snapshot=Snapshot.load(file))
    runtime.open(seed=1).close()


def test_a_moshi_session_is_saved_too(moshi_bundle: Bundle) -> None:
    runtime = small_runtime(moshi_bundle, 2)
    session = runtime.open(seed=1)
    talk(session, PCM[0, :120])  # past the end of its ring
    fork = runtime.open(snapshot=session.snapshot())
    original, forked = both(runtime, session, fork, PCM[0, 120:200])
    assert original == forked


def test_a_snapshot_holds_no_more_than_what_was_said(file: Path, three: Runtime) -> None:
    """Its size follows the conversation: entries that were never written are not saved."""
    sizes = []
    for frames in (2, 30):
        session, _ = finish(three.begin(None, "", seed=1))
        with session:
            talk(session, PCM[0, :frames])
            sizes.append({name: array.nbytes for name, array in session.snapshot().arrays.items()})
    key = sizes[0]["temporal.k.0"] / sizes[1]["temporal.k.0"]
    assert key < 0.6
    assert load_file(file).keys() == sizes[0].keys()
