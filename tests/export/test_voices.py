"""Reading voices.tgz and the folder voices: the golden ones, and hostile archives."""

import gzip
import io
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from pplex.export.build import _find_voices
from pplex.export.build_plan import DEFAULT_BUILD, plan_build
from pplex.export.checkpoint import open_checkpoint
from pplex.export.voices import MAX_VOICE_FRAMES, find_voices, read_voices, write_voices
from pplex.runtime.config_file import read_config
from pplex.runtime.errors import CheckpointError
from pplex.runtime.voice_file import Voice, read_voices_file

CHECKPOINT = Path(__file__).parents[1] / "golden/tiny/checkpoint"
CONFIG = read_config(CHECKPOINT / "config.json").config
DIM, FRAMES = CONFIG.temporal.dim, 5
RING = (1, CONFIG.num_streams, CONFIG.max_delay + 3)


def state(**changes: Any) -> dict[str, Any]:
    return {"embeddings": torch.ones(FRAMES, 1, 1, DIM), "cache": torch.ones(RING, dtype=torch.int64), **changes}


def saved(value: Any, **options: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data, **options)
    return data.getvalue()


GOOD = saved(state())


def packed(path: Path, members: Mapping[str, bytes] | list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """A tar.gz at `path` with files by name, or with entries of arbitrary headers."""
    entries = (
        members if isinstance(members, list) else [(tarfile.TarInfo(name), data) for name, data in members.items()]
    )
    with tarfile.open(path, "w:gz") as archive:
        for entry, data in entries:
            if entry.isreg():
                entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def refusal(tgz: Path, **limits: int) -> str:
    with pytest.raises(CheckpointError) as error:
        read_voices(tgz, CONFIG, **limits)
    assert str(tgz) in str(error.value)
    return str(error.value)


def warned(tgz: Path) -> list[str]:
    """What is said about a checkpoint with this archive, whose only usable voice is B."""
    found = find_voices(tgz.parent, CONFIG)
    assert list(found.voices) == ["B"] == list(read_voices(tgz, CONFIG))
    return found.warnings


@pytest.fixture
def tgz(tmp_path: Path) -> Path:
    return tmp_path / "voices.tgz"


class TestRead:
    def test_golden_voices(self) -> None:
        voices = read_voices(CHECKPOINT / "voices.tgz", CONFIG)
        assert list(voices) == sorted(path.stem for path in (CHECKPOINT / "voices").glob("*.pt"))
        for name, voice in voices.items():
            stored = torch.load(CHECKPOINT / f"voices/{name}.pt", weights_only=True)
            assert voice.embeddings.dtype == np.float32
            assert voice.cache.dtype == np.int64
            np.testing.assert_array_equal(voice.embeddings, stored["embeddings"][:, 0, 0].float())
            np.testing.assert_array_equal(voice.cache, stored["cache"][0])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_embeddings_become_float32(self, tgz: Path, dtype: torch.dtype) -> None:
        packed(tgz, {"voices/A.pt": saved(state(embeddings=torch.full((FRAMES, 1, 1, DIM), 0.1, dtype=dtype)))})
        voice = read_voices(tgz, CONFIG)["A"]
        assert voice.embeddings.shape == (FRAMES, DIM)
        np.testing.assert_array_equal(voice.embeddings, torch.full((FRAMES, DIM), 0.1, dtype=dtype).float())

    def test_attributes_of_training_are_dropped(self, tgz: Path) -> None:
        wide = torch.nn.Parameter(torch.ones(FRAMES, 1, 1, 2 * DIM))
        packed(tgz, {"A.pt": saved(state(embeddings=wide[..., :DIM], note="kept by nobody"))})
        embeddings = read_voices(tgz, CONFIG)["A"].embeddings
        assert embeddings.flags.c_contiguous and embeddings.nbytes == 4 * FRAMES * DIM

    def test_other_files_and_folders_are_ignored(self, tgz: Path) -> None:
        folder = tarfile.TarInfo("./voices")
        folder.type = tarfile.DIRTYPE
        names = ["./voices/A.pt", "voices/A.wav", "voices/._A.pt", "README"]
        packed(tgz, [(folder, b""), *((tarfile.TarInfo(name), GOOD) for name in names)])
        assert list(read_voices(tgz, CONFIG)) == ["A"]

    def test_tokens_at_the_ends_of_the_range_are_read(self, tgz: Path) -> None:
        cache = torch.tensor(CONFIG.initial_tokens)[None, :, None].repeat(1, 1, RING[2])
        cache[..., 0] = -1
        packed(tgz, {"A.pt": saved(state(cache=cache.to(torch.int32)))})
        np.testing.assert_array_equal(read_voices(tgz, CONFIG)["A"].cache, cache[0])


class TestHostile:
    class Evil:
        def __init__(self, path: Path):
            self.path = path

        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(self.path),)

    @pytest.mark.parametrize(
        "save",
        [saved, lambda value: saved(value, _use_new_zipfile_serialization=False), pickle.dumps],
        ids=["zip", "legacy", "plain pickle"],
    )
    def test_code_is_not_run(self, tmp_path: Path, tgz: Path, save: Any) -> None:
        target = tmp_path / "was run"
        evil = save(state(embeddings=self.Evil(target)))
        message = refusal(packed(tgz, {"voices/A.pt": evil}))
        assert "voices/A.pt: its pickle" in message
        assert "refused, not run" in message
        assert "weights_only" not in message  # torch itself advises to run it
        assert not target.exists()

    def test_code_in_a_pickle_is_named(self, tmp_path: Path, tgz: Path) -> None:
        assert "calls posix.mkdir" in refusal(packed(tgz, {"A.pt": saved(self.Evil(tmp_path / "was run"))}))

    @pytest.mark.parametrize("name", ["../A.pt", "voices/../../A.pt", "/A.pt", "../note.txt"])
    def test_paths_out_of_the_archive_are_refused(self, tmp_path: Path, tgz: Path, name: str) -> None:
        packed(tgz, {name: GOOD, "voices/B.pt": GOOD})
        assert warned(tgz) == [f"voices.tgz: {name}: its path leads out of the archive"]
        assert os.listdir(tmp_path) == ["voices.tgz"]

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
    def test_links_and_devices_are_refused(self, tgz: Path, kind: bytes) -> None:
        link = tarfile.TarInfo("voices/A.pt")
        link.type, link.linkname = kind, "../../etc/hostname"
        assert "voices/A.pt: it is a link or a device" in refusal(packed(tgz, [(link, b"")]))

    def test_a_bomb_within_a_member_is_refused(self, tgz: Path) -> None:
        packed(tgz, {"voices/A.pt": GOOD, "voices/zeros.bin": bytes(1 << 24)})
        assert tgz.stat().st_size < 1 << 16
        assert "unpacks to more than 0.00105 GB" in refusal(tgz, max_nbytes=1 << 20)

    def test_a_bomb_after_the_last_member_is_refused(self, tgz: Path) -> None:
        """No header mentions these zeros."""
        packed(tgz, {"voices/A.pt": GOOD})
        tgz.write_bytes(tgz.read_bytes() + gzip.compress(bytes(1 << 24)))
        assert "unpacks to more" in refusal(tgz, max_nbytes=1 << 20)

    def test_a_bomb_in_a_header_is_refused(self, tgz: Path) -> None:
        entry = tarfile.TarInfo("voices/A.pt")
        entry.pax_headers = {"comment": "0" * (1 << 24)}
        packed(tgz, [(entry, GOOD)])
        assert "unpacks to more" in refusal(tgz, max_nbytes=1 << 20)

    def test_a_false_size_is_refused(self, tgz: Path) -> None:
        entry = tarfile.TarInfo("voices/A.pt")
        entry.size = 1 << 40
        with gzip.open(tgz, "wb") as file:
            file.write(entry.tobuf() + bytes(1 << 12))
        assert "unpacks to more" in refusal(tgz)

    def test_too_many_members_are_refused(self, tgz: Path) -> None:
        packed(tgz, {f"voices/{i}.txt": b"" for i in range(11)})
        assert "or 10 files" in refusal(tgz, max_members=10)

    def test_a_compressed_pickle_is_refused(self, tgz: Path) -> None:
        squeezed = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(saved(state(embeddings=torch.zeros(1000, 1, 1, DIM))))) as whole,
            zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as smaller,
        ):
            for entry in whole.infolist():
                smaller.writestr(entry.filename, whole.read(entry))
        assert "it is compressed" in refusal(packed(tgz, {"A.pt": squeezed.getvalue()}))

    def test_a_tensor_larger_than_its_storage_is_refused(self, tgz: Path) -> None:
        endless = torch.zeros(1).expand(1 << 40, 1, 1, DIM)
        assert "lasts 1099511627776 frames" in refusal(packed(tgz, {"A.pt": saved(state(embeddings=endless))}))


class TestUnfit:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"embeddings": torch.ones(FRAMES, DIM)}, f"embeddings are float32 [{FRAMES}, {DIM}], expected floats"),
            ({"embeddings": torch.ones(FRAMES, 1, 1, DIM + 1)}, f"expected floats [T, 1, 1, {DIM}]"),
            ({"embeddings": torch.ones(FRAMES, 1, 1, DIM, dtype=torch.int32)}, "embeddings are int32"),
            ({"embeddings": torch.tensor(1.0)}, "embeddings are float32 []"),
            ({"embeddings": torch.ones(0, 1, 1, DIM)}, "it lasts 0 frames, expected 1 to"),
            ({"embeddings": torch.ones(MAX_VOICE_FRAMES + 1, 1, 1, DIM)}, f"it lasts {MAX_VOICE_FRAMES + 1} frames"),
            ({"embeddings": torch.full((FRAMES, 1, 1, DIM), torch.nan)}, f"{FRAMES * DIM} of its embeddings' numbers"),
            ({"embeddings": torch.ones(FRAMES, 1, 1, DIM).to_sparse()}, "embeddings is not a plain tensor"),
            ({"embeddings": torch.empty(FRAMES, 1, 1, DIM, device="meta")}, "embeddings is not a plain tensor"),
            ({"cache": [1, 2]}, "cache is not a plain tensor"),
            ({"cache": torch.ones(RING)}, f"cache is float32 {list(RING)}, expected integers"),
            ({"cache": torch.ones(RING[1:], dtype=torch.int64)}, f"expected integers {list(RING)}"),
            ({"cache": torch.full(RING, -2)}, "cache holds [-2, -2, -2, -2] for stream 0, expected -1 to 400"),
            ({"cache": torch.full(RING, 401)}, "for stream 0, expected -1 to 400"),
            (
                {"cache": torch.full(RING, 2049)},
                "cache holds [2049, 2049, 2049, 2049] for stream 16, expected -1 to 2048",
            ),
        ],
    )
    def test_an_unfit_tensor_is_refused(self, tgz: Path, changes: dict[str, Any], sentence: str) -> None:
        assert sentence in refusal(packed(tgz, {"voices/A.pt": saved(state(**changes))}))

    @pytest.mark.parametrize(
        ("data", "sentence"),
        [
            (saved({"embeddings": torch.ones(1)}), "expected the keys embeddings and cache, found ['embeddings']"),
            (saved([1, 2]), "found list"),
            (GOOD[: len(GOOD) // 2], "it is damaged (RuntimeError"),
            (b"", "it is damaged (EOFError"),
            (b"no pickle", "damaged"),
            (b"PK\x03\x04" + bytes(100), "damaged"),
        ],
    )
    def test_a_file_that_is_not_a_voice_is_refused(self, tgz: Path, data: bytes, sentence: str) -> None:
        assert sentence in refusal(packed(tgz, {"voices/A.pt": data}))

    def test_every_problem_of_every_voice_is_listed(self, tgz: Path) -> None:
        both = saved(state(embeddings=torch.ones(1), cache=torch.ones(1)))
        members = {"voices/A.pt": both, "voices/ü.pt": GOOD, "voices/none.pt": GOOD, "voices/C.pt.pt": GOOD}
        message = refusal(packed(tgz, members))
        assert message.count("\n  ") == 4
        for problem in (
            "A.pt: embeddings are",
            "; cache is",
            "ü.pt: a voice's name",
            "none.pt: none means",
            "C.pt.pt: a",
        ):
            assert problem in message
        packed(tgz, {**members, "voices/B.pt": GOOD, "other/B.pt": GOOD})
        assert len(warned(tgz)) == 5 and "other/B.pt: another voice is also named B" in warned(tgz)[-1]

    def test_an_archive_without_voices_is_refused(self, tgz: Path) -> None:
        assert "holds no voice" in refusal(packed(tgz, {"voices/A.wav": b"RIFF"}))

    def test_a_missing_archive_is_refused(self, tgz: Path) -> None:
        assert "does not exist" in refusal(tgz)

    @pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip", "empty"])
    def test_a_damaged_archive_is_refused(self, tgz: Path, damage: str) -> None:
        packed(tgz, {f"voices/{name}.pt": GOOD for name in "ABC"})
        whole = tgz.read_bytes()
        flipped = whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]  # in the checksum, behind the last member
        tgz.write_bytes({"cut": whole[:-20], "flipped": flipped, "no gzip": b"plain", "empty": b""}[damage])
        assert "is damaged or not a tar.gz" in refusal(tgz)

    def test_a_header_that_is_not_a_number_is_refused(self, tgz: Path) -> None:
        entry = tarfile.TarInfo("voices/A.pt")
        entry.pax_headers = {"GNU.sparse.map": "x,y"}
        assert "is damaged or not a tar.gz" in refusal(packed(tgz, [(entry, GOOD)]))


def loose(checkpoint: Path, **voices: bytes) -> Path:
    """A checkpoint's folder with loose voices."""
    (checkpoint / "voices").mkdir(exist_ok=True)
    for name, data in voices.items():
        (checkpoint / f"voices/{name}.pt").write_bytes(data)
    return checkpoint


class TestFolder:
    def test_a_folder_of_voices_equals_its_archive(self, tmp_path: Path) -> None:
        shutil.copytree(CHECKPOINT / "voices", tmp_path / "voices")
        shutil.copy(CHECKPOINT / "voices.tgz", tmp_path / "other.tgz")
        found, packed = find_voices(tmp_path, CONFIG), read_voices(tmp_path / "other.tgz", CONFIG)
        assert list(found.voices) == list(packed) and not found.warnings
        for name, voice in packed.items():
            np.testing.assert_array_equal(found.voices[name].embeddings, voice.embeddings)
            np.testing.assert_array_equal(found.voices[name].cache, voice.cache)

    def test_both_are_read_and_the_folder_is_used_for_a_name_in_both(self, tmp_path: Path, tgz: Path) -> None:
        packed(tgz, {"voices/A.pt": GOOD, "voices/C.pt": GOOD})
        changed = saved(state(embeddings=torch.full((FRAMES, 1, 1, DIM), 2.0)))
        found = find_voices(loose(tmp_path, B=GOOD, C=changed), CONFIG)
        assert {name: voice.embeddings[0, 0] for name, voice in found.voices.items()} == {"A": 1, "B": 1, "C": 2}
        assert not found.warnings

    def test_neither_is_no_voice(self, tmp_path: Path) -> None:
        assert find_voices(tmp_path, CONFIG).voices == read_voices(tmp_path, CONFIG) == {}
        assert find_voices(loose(tmp_path), CONFIG).voices == {}

    def test_one_unusable_voice_is_left_out_with_a_warning(self, tmp_path: Path) -> None:
        """Damaged, of another model, and a broken link: the hub's cache has links."""
        loose(tmp_path, A=GOOD, B=GOOD[:100], C=saved(state(embeddings=torch.ones(FRAMES, 1, 1, DIM + 1))))
        (tmp_path / "voices/D.pt").symlink_to("nowhere")
        (tmp_path / "voices/E.pt").symlink_to("A.pt")
        (tmp_path / "voices/F.pt").mkdir()
        (tmp_path / "voices/G.wav").write_bytes(b"RIFF")
        found = find_voices(tmp_path, CONFIG)
        assert list(found.voices) == ["A", "E"]
        for warning, start in zip(
            found.warnings, ("B.pt: it is damaged", "C.pt: embeddings are", "D.pt: it is a"), strict=True
        ):
            assert warning.startswith(f"voices/{start}")

    def test_a_voice_in_the_archive_replaces_an_unusable_one_of_the_folder(self, tmp_path: Path, tgz: Path) -> None:
        packed(tgz, {"voices/A.pt": GOOD})
        found = find_voices(loose(tmp_path, A=b"no voice"), CONFIG)
        assert list(found.voices) == ["A"] and "voices/A.pt: " in found.warnings[0]

    def test_only_unusable_voices_are_refused(self, tmp_path: Path) -> None:
        loose(tmp_path, A=GOOD[:100], B=saved([1, 2]))
        with pytest.raises(
            CheckpointError, match=r"only voices that cannot be used:\n  voices/A.*\n  voices/B.*\nDownload"
        ):
            find_voices(tmp_path, CONFIG)

    def test_code_in_a_folder_is_not_run(self, tmp_path: Path) -> None:
        target = tmp_path / "was run"
        found = find_voices(loose(tmp_path, A=saved(TestHostile.Evil(target)), B=GOOD), CONFIG)
        assert list(found.voices) == ["B"] and "calls posix.mkdir; it was refused" in found.warnings[0]
        assert not target.exists()


def test_a_build_leaves_an_unusable_voice_out_and_says_so(tmp_path: Path) -> None:
    checkpoint = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    (checkpoint / "voices.tgz").write_bytes((CHECKPOINT / "voices.tgz").read_bytes())
    loose(checkpoint, Broken=GOOD[:100])
    said = list[str]()
    plan = plan_build(open_checkpoint(checkpoint), DEFAULT_BUILD)
    assert list(_find_voices(plan, said.append)) == ["NATF0", "NATM1", "VARF2"]
    assert said[0].startswith("Warning: a voice cannot be used and is left out. voices/Broken.pt: it is damaged")


def test_written_voices_are_read_without_torch(tmp_path: Path) -> None:
    voices = read_voices(CHECKPOINT / "voices.tgz", CONFIG)
    write_voices(voices, tmp_path / "voices.safetensors")
    stored = safetensors.numpy.load_file(tmp_path / "voices.safetensors")
    assert stored.keys() == {f"{name}.{part}" for name in voices for part in ("embeddings", "cache")}
    for name, voice in voices.items():
        np.testing.assert_array_equal(stored[f"{name}.embeddings"], voice.embeddings)
        np.testing.assert_array_equal(stored[f"{name}.cache"], voice.cache)


def test_written_voices_do_not_depend_on_their_order(tmp_path: Path) -> None:
    a, b = (Voice(np.full((3, DIM), value, np.float32), np.zeros(RING[1:], np.int64)) for value in (1.0, 2.0))
    write_voices({"A": a, "B": b}, tmp_path / "ab")
    write_voices({"B": b, "A": a}, tmp_path / "ba")
    write_voices({}, tmp_path / "none")
    assert read_voices_file(tmp_path / "none", ()) == ({}, {})
    assert (tmp_path / "ab").read_bytes() == (tmp_path / "ba").read_bytes()
