"""The names of voices: each can be chosen where voices are named."""

import pytest

from pplex.runtime.voice_file import is_voices_file, name_problem


@pytest.mark.parametrize("name", ["A", "NATF0", "ann-marie_2", "v1.5", "None2", "-", "wav"])
def test_a_name_of_letters_digits_and_some_signs_is_good(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name, why",
    [
        ("", "letters"), (".hidden", "first character"), ("a b", "letters"), ("a/b", "letters"), ("..", "letters"),
        ("ü", "letters"), ("A\n", "letters"), ("none", "without a voice"), ("None", "without a voice"),
        ("A.pt", "names a file"), ("ann.wav", "names a file"), ("ann.FLAC", "names a file"), ("a.ogg", "names a file"),
    ],
)  # fmt: skip
def test_a_name_with_another_meaning_is_refused(name: str, why: str) -> None:
    assert why in str(name_problem(name))


def test_files_of_voices_are_known_by_their_names() -> None:
    assert is_voices_file("voices.safetensors") and is_voices_file("voices-0a1b.safetensors")
    for other in ("voices.tgz", "voices-mine.safetensors", "calibration.safetensors", "xvoices.safetensors"):
        assert not is_voices_file(other)
