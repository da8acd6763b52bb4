"""Files with wrong headers, joined files, and bytes after the samples, through `read_audio` and libsndfile."""

import io
import re
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import read_audio
from pplex.runtime.containers import LAYOUTS, find_parts, is_trailer
from pplex.runtime.errors import AudioError, AudioWarning

CASES = Path(__file__).parents[1] / "cases"
RATE_HZ = 24_000
SIZED = ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF"]  # containers whose header gives the size of the samples


def noise(samples: int = 12_000, seed: int = 0) -> Pcm:
    """Loud multiples of 1/256: exact in 16 bits, and their bytes never look like text."""
    return np.random.default_rng(seed).integers(-127, 128, samples).astype(np.float32) / 256


def encoded(pcm: Pcm, container: str, subtype: str | None = None, rate_hz: int = RATE_HZ) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, pcm, rate_hz, subtype or "PCM_16", format=container)
    return data.getvalue()


def read(data: bytes) -> Pcm:
    return read_audio(io.BytesIO(data))


def with_size(data: bytes, size: int, whole: int | None = None) -> bytes:
    """The file with changed size fields: of the samples, and of the whole file."""
    changed = bytearray(data)
    if data[:4] == b".snd":
        struct.pack_into(">I", changed, 8, size)
    elif data[:4] == b"RF64":
        struct.pack_into("<QQ", changed, 20, size if whole is None else whole, size)
    elif data[:4] == b"riff":
        struct.pack_into("<Q", changed, data.index(b"data") + 16, size)
    elif data[:4] == b"caff":
        struct.pack_into(">Q", changed, data.index(b"data") + 4, size)
    else:
        order, name = ("<", b"data") if data[:4] == b"RIFF" else (">", b"SSND")
        struct.pack_into(f"{order}I", changed, data.index(name) + 4, size)
        struct.pack_into(f"{order}I", changed, 4, size if whole is None else whole)
    return bytes(changed)


class TestSizes:
    @pytest.mark.parametrize("container", SIZED)
    @pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 10**6])
    def test_a_wav_without_its_final_size_is_read(self, container: str, size: int) -> None:
        np.testing.assert_array_equal(read(with_size(encoded(noise(), container), size)), noise())

    @pytest.mark.parametrize("container", SIZED)
    def test_samples_beyond_the_claimed_size_are_heard_with_a_warning(self, container: str) -> None:
        """A recorder that updates its header from time to time."""
        with pytest.warns(
            AudioWarning, match=r"its header says 9,[56]\d\d bytes of samples, but it has 24,0..?: all of"
        ):
            heard = read(with_size(encoded(noise(), container), 9600))
        np.testing.assert_array_equal(heard, noise())

    @pytest.mark.parametrize(
        "subtype", ["FLOAT", "DOUBLE", "PCM_24", "PCM_U8", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"]
    )
    def test_a_size_of_0_is_read_in_any_coding(self, subtype: str) -> None:
        data = encoded(noise(), "WAV", subtype)
        np.testing.assert_array_equal(read(with_size(data, 0)), read(data))

    def test_a_wav_above_4_gib_is_read_despite_its_truncated_size(self) -> None:
        data = encoded(noise(), "WAV")
        (part,) = find_parts(with_size(data, 24_000 - 9000))
        assert len(part.data) == len(data)

    @pytest.mark.parametrize("container", SIZED)
    def test_a_recording_that_is_cut_short_is_read_to_its_end(self, container: str) -> None:
        data = encoded(noise(), container)
        np.testing.assert_array_equal(read(data[:-10_000]), noise()[:7000])

    @pytest.mark.parametrize("container, size", [("W64", size) for size in range(4016, 4025)] + [("WAV", 3999)])
    def test_samples_where_padding_would_be_are_read(self, container: str, size: int) -> None:
        """A size that is a few bytes too small, as if these were padding; padding is zeros."""
        pcm = noise(2000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)
            np.testing.assert_array_equal(read(with_size(encoded(pcm, container), size, None)), pcm)

    @settings(max_examples=150, deadline=None)
    @given(
        size=st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 5000)),
        whole=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
        container=st.sampled_from(SIZED),
    )
    def test_all_samples_are_read_for_any_size(self, size: int, whole: int | None, container: str) -> None:
        pcm = noise(2000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)
            np.testing.assert_array_equal(read(with_size(encoded(pcm, container), size, whole)), pcm)

    def test_an_empty_recording_stays_empty(self) -> None:
        chunk = b"LIST" + struct.pack("<I", 4) + b"INFO"
        for data in (encoded(noise(0), "WAV"), encoded(noise(0), "WAV") + chunk):
            with pytest.raises(AudioError, match="holds no samples"):
                read(data)


CHUNKS = [
    b"LIST" + struct.pack("<I", 26) + b"INFOISFT\x0e\0\0\0Lavf59.27.100\0",
    b"id3 " + struct.pack("<I", 11) + b"ID3\x03\0\0\0\0\0\x01x\0" + b"bext" + struct.pack("<I", 4) + b"abcd",
    b"LIST" + struct.pack("<I", 1000) + b"INFOISFT",  # cut short
    b"_PMX" + struct.pack("<I", 3) + b"<x>",  # the last one's padding is left out
]


class TestAfterTheSamples:
    @pytest.mark.parametrize("chunks", CHUNKS, ids=["LIST", "id3, bext", "cut short", "XMP"])
    @pytest.mark.parametrize("samples", [12_000, 11_999])
    def test_chunks_are_not_decoded_as_samples(self, chunks: bytes, samples: int) -> None:
        data = encoded(noise(samples), "WAV", "PCM_U8") + chunks
        assert len(read(data)) == samples

    def test_chunks_after_samples_without_padding_are_not_decoded(self) -> None:
        data = encoded(noise(11_999), "WAV", "PCM_U8")
        assert data[-1] == 0 and len(data) % 2 == 0  # the padding
        assert len(read(data[:-1] + CHUNKS[0])) == 11_999

    @pytest.mark.parametrize("container", ["W64", "AIFF", "CAF"])
    def test_chunks_of_other_containers_are_not_decoded(self, container: str) -> None:
        chunk = {
            "W64": b"list\x2f\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0" + struct.pack("<Q", 32) + bytes(range(8)),
            "AIFF": b"ANNO" + struct.pack(">I", 4) + b"text",
            "CAF": b"info" + struct.pack(">Q", 8) + b"\0\0\0\1a\0b\0",
        }[container]
        np.testing.assert_array_equal(read(encoded(noise(), container) + chunk), noise())

    TAGS = (
        b"TAG" + b"title".ljust(125, b"\0"),
        b"ID3\x03\0\0\0\0\0\x05title",
        b"APETAGEX" + struct.pack("<II", 2000, 32 + 5) + bytes(16) + b"title" + bytes(32),
        b"LYRICSBEGINla la000011LYRICS200" + b"TAG".ljust(128, b"x"),
        bytes(700),
    )

    @pytest.mark.parametrize("tag", TAGS, ids=["ID3v1", "ID3v2", "APE", "lyrics", "padding"])
    @pytest.mark.parametrize("container", [*SIZED, "FLAC", "OGG", "MP3"])
    def test_tags_and_padding_are_not_decoded(self, container: str, tag: bytes) -> None:
        data = encoded(noise(), container, {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(container))
        assert len(read(data + tag)) == len(read(data))

    def test_a_tag_does_not_hide_what_follows_it(self) -> None:
        assert all(is_trailer(tag) for tag in self.TAGS)
        assert not any(is_trailer(tag + b"audio") for tag in self.TAGS)


class TestJoined:
    def test_a_chain_of_opus_is_read(self) -> None:
        heard = read_audio(CASES / "chained.ogg")
        assert len(heard) == 4 * RATE_HZ
        assert np.abs(heard[-RATE_HZ:]).max() > 0.1

    def test_a_chain_of_different_codecs_rates_and_channels_is_read(self) -> None:
        stereo = np.stack([noise(44_100), noise(44_100)], axis=1)
        data = (
            encoded(noise(16_000), "OGG", "VORBIS", 16_000)
            + encoded(stereo, "OGG", "VORBIS", 44_100)
            + encoded(noise(48_000), "OGG", "OPUS", 48_000)
        )
        heard = read(data).reshape(3, RATE_HZ)
        assert (np.abs(heard).max(axis=1) > 0.1).all()

    def test_streams_side_by_side_are_one_link(self) -> None:
        """Two first pages in a row, as in a film with sound."""
        data = encoded(noise(), "OGG", "VORBIS")
        first_page = data[: data.index(b"OggS", 1)]
        other = b"OggS\0\2" + bytes(8) + b"\1\0\0\0" + bytes(8) + b"\1\x08fishead\0"
        assert [part.data for part in find_parts(first_page + other + data[len(first_page) :])] == [
            first_page + other + data[len(first_page) :]
        ]

    @pytest.mark.parametrize("container", [*SIZED, "FLAC"])
    def test_files_joined_by_cat_are_read(self, container: str) -> None:
        data = encoded(noise(), container) + encoded(noise(seed=1), container) + encoded(noise(seed=2), container)
        np.testing.assert_array_equal(read(data), np.concatenate([noise(seed=seed) for seed in range(3)]))

    def test_files_of_several_kinds_joined_by_cat_are_read(self) -> None:
        data = (
            encoded(noise(), "WAV")
            + encoded(noise(), "AIFF")
            + encoded(noise(), "OGG", "VORBIS")
            + encoded(noise(), "FLAC")
        )
        assert len(read(data)) == 4 * 12_000

    @pytest.mark.parametrize(
        "first, second", [("FLAC", "WAV"), ("FLAC", "AIFF"), ("FLAC", "OGG"), ("OGG", "WAV"), ("OGG", "FLAC")]
    )
    def test_a_short_recording_behind_another_is_heard(self, first: str, second: str) -> None:
        """libsndfile reads ahead, so it does not show that bytes are left."""
        subtype = {"OGG": "VORBIS"}
        data = encoded(noise(96_000), first, subtype.get(first)) + encoded(noise(2400), second, subtype.get(second))
        assert len(read(data)) == pytest.approx(98_400, abs=200)

    def test_joined_mp3_is_refused_where_decoding_stops(self) -> None:
        data = encoded(noise(48_000), "MP3", "MPEG_LAYER_III")
        with pytest.raises(
            AudioError, match=rf"stops at 2\.00 s, and {len(data):,} of {2 * len(data):,} bytes are left"
        ):
            read(data + data)

    def test_a_damaged_second_recording_is_refused_with_its_position(self) -> None:
        data = encoded(noise(), "OGG", "VORBIS")
        broken = encoded(noise(seed=1), "OGG", "VORBIS").replace(b"vorbis", b"vorbiz")
        with pytest.raises(AudioError, match=r"is damaged: after 0\.50 s it cannot be read"):
            read(data + broken)


class TestDamaged:
    def long(self, container: str, subtype: str) -> bytes:
        data = io.BytesIO()
        pcm = noise(240_000)
        with soundfile.SoundFile(data, "w", RATE_HZ, 1, subtype, format=container) as file:
            for start in range(0, len(pcm), 4096):
                file.write(pcm[start : start + 4096])
        return data.getvalue()

    @pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
    def test_ogg_with_a_gap_is_read_and_the_gap_reported(self, subtype: str) -> None:
        data = self.long("OGG", subtype)
        middle = len(data) // 2
        with pytest.warns(AudioWarning, match=r"damaged or cut short: only \d\.\d\d s of its 10\.00 s can be decoded"):
            heard = read(data[:middle] + bytes(5000) + data[middle + 5000 :])
        assert 5 * RATE_HZ < len(heard) < 9.5 * RATE_HZ

    def test_flac_with_garbage_in_it_is_refused_with_the_position(self) -> None:
        data = self.long("FLAC", "PCM_16")
        middle = len(data) // 2
        with pytest.raises(AudioError, match=r"is damaged: after (4|5)\.\d\d s it cannot be read .*\nCut it there"):
            read(data[:middle] + b"\x55" * 5000 + data[middle:])

    @pytest.mark.parametrize("kept", [1.0, 0.5])
    def test_flac_of_unknown_length_is_read_to_its_end(self, kept: float) -> None:
        """FLAC as an encoder writes it to a pipe, and as a killed recorder (our server's too) leaves it."""
        data = bytearray(self.long("FLAC", "PCM_16"))
        data[21] &= 0xF0
        data[22:26] = bytes(4)
        heard = read(bytes(data[: round(kept * len(data))]))
        assert len(heard) >= kept * 240_000 - 2 * 4096
        np.testing.assert_array_equal(heard, noise(240_000)[: len(heard)])

    def test_flac_that_claims_too_few_samples_is_refused_with_the_position(self) -> None:
        data = bytearray(self.long("FLAC", "PCM_16"))
        data[22:26] = (24_000).to_bytes(4, "big")
        with pytest.raises(AudioError, match=r"decoding stops at 1\.00 s, and [\d,]+ of [\d,]+ bytes are left"):
            read(bytes(data))


HEADERS = [
    encoded(noise(400), container, subtype)
    for container, subtype in [
        *((container, "PCM_16") for container in SIZED),
        ("WAV", "IMA_ADPCM"),
        ("FLAC", "PCM_16"),
    ]
] + [encoded(noise(400), "OGG", "VORBIS")]


class TestHostile:
    @settings(max_examples=400, deadline=None)
    @given(st.data())
    def test_any_header_bytes_give_samples_or_our_error(self, draw: st.DataObject) -> None:
        data = bytearray(draw.draw(st.sampled_from(HEADERS)))
        for _ in range(draw.draw(st.integers(1, 4))):
            at = draw.draw(st.integers(0, min(len(data), 150) - 1))
            put = draw.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([bytes(4), b"\xff" * 8])))
            data[at : at + len(put)] = put
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)
            try:
                heard = read(bytes(data))
            except AudioError as error:
                assert re.search(r"the audio|sampled at", str(error))
            else:
                assert heard.dtype == np.float32 and np.isfinite(heard).all()

    @settings(max_examples=300, deadline=None)
    @given(
        start=st.sampled_from([*(data[:60] for data in HEADERS), b"", b"dns.", b"RIFX"]), rest=st.binary(max_size=200)
    )
    def test_dividing_a_file_loses_and_adds_no_bytes(self, start: bytes, rest: bytes) -> None:
        data = start + rest
        parts = find_parts(data)
        assert sum(len(part.data) for part in parts) <= len(data)
        assert bool(parts) == bool(data)

    def test_thousands_of_headers_in_a_row_are_divided(self) -> None:
        header = encoded(noise(0), "WAV")
        assert len(find_parts(header * 2000)) == 2000

    def test_every_layout_is_tried(self) -> None:
        found = {layout for layout in LAYOUTS for data in HEADERS if layout.magic.match(data)}
        assert len(found) == 5  # all except the two of the other byte order
