"""The likeness of voices: a tiny WavLM with random weights, from a folder and without the network."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from planted_agents import PLANTED, copied
from recorded import write_speech

from pplex.cli import main
from pplex.fdb.segments import read_recording
from pplex.fdb.similarity import cosine, speech_in
from pplex.runtime.bundle import Bundle

SAMPLE = "synthetic_user_interruption/1"
SPOKEN = PLANTED / "icc_backchannel/1/output.wav"
OTHER = PLANTED / "icc_backchannel/3/output.wav"


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a WavLM for speakers, with an embedding of 8 numbers."""
    library = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install 'pplex-export[similarity]'"
    )
    import torch

    library.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("models") / "tiny-sv"
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    front = {"conv_dim": (8, 8), "conv_stride": (16, 20), "conv_kernel": (16, 20), "num_feat_extract_layers": 2}
    place = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    head = {"tdnn_dim": (8, 8), "tdnn_kernel": (5, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = library.WavLMForXVector(library.WavLMConfig(**layers, **front, **place, **head))
    model.save_pretrained(folder)
    library.Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=True).save_pretrained(folder)
    return folder


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """An interruption that was answered with speech."""
    folder = copied(tmp_path / "out", SAMPLE)
    shutil.copy(SPOKEN, folder / SAMPLE / "output.wav")
    return folder


def scored(folder: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["fdb", "score", *map(str, (folder, *arguments, "--json"))])


def likeness(done: Result) -> float | None:
    assert done.exit_code == 0, done.output
    measures = {one["name"]: one for section in json.loads(done.stdout)["sections"] for one in section["measures"]}
    value: float | None = measures["synthetic_user_interruption.ssim"]["value"]
    return value


def test_the_same_recording_is_alike_and_the_model_is_named(wavlm: Path, answers: Path, tmp_path: Path) -> None:
    done = scored(answers, "--similarity", "wavlm", "--similarity-model", wavlm, "--voice", SPOKEN)
    assert likeness(done) == pytest.approx(1, abs=1e-5)
    report = json.loads(done.stdout)
    assert report["settings"]["similarity"] == "WavLM (tiny-sv)" and report["settings"]["voice"] == str(SPOKEN)
    assert "another model do not compare" in " ".join(report["sections"][0]["notes"])
    published = next(row for row in report["sections"][0]["tables"][0]["rows"] if "model card" in row[1])
    assert "0.650" in published


def test_it_is_the_models_cosine_of_the_speech_alone(wavlm: Path, answers: Path) -> None:
    from pplex.fdb.speakers import WavLM

    embed = WavLM(wavlm)
    speech = [speech_in(read_recording(path)) for path in (SPOKEN, OTHER)]
    assert speech[0] is not None and speech[1] is not None
    assert len(speech[0]) < len(read_recording(SPOKEN).pcm)
    expected = cosine(embed(speech[0]), embed(speech[1]))
    done = scored(answers, "--similarity", "wavlm", "--similarity-model", wavlm, "--voice", OTHER)
    assert likeness(done) == pytest.approx(expected, abs=1e-5) and expected < 0.99999


def test_a_silent_agent_has_no_likeness(wavlm: Path, answers: Path) -> None:
    soundfile.write(answers / SAMPLE / "output.wav", np.zeros(32_000), 16_000)
    done = scored(answers, "--similarity", "wavlm", "--similarity-model", wavlm, "--voice", SPOKEN)
    assert done.exit_code == 0 and ".ssim" not in done.stdout


def test_weights_without_the_head_for_speakers_are_refused(wavlm: Path, answers: Path, tmp_path: Path) -> None:
    """transformers would draw the missing ones at random."""
    import transformers

    bare = Path(shutil.copytree(wavlm, tmp_path / "bare"))
    transformers.WavLMForXVector.from_pretrained(wavlm).wavlm.save_pretrained(bare)
    done = scored(answers, "--similarity", "wavlm", "--similarity-model", bare, "--voice", SPOKEN)
    assert done.exit_code == 1 and "it lacks" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "content, words", [(None, "is not a folder"), ({}, "no WavLM"), ({"config.json": "{"}, "no WavLM")]
)
def test_a_folder_without_a_model_is_refused(
    wavlm: Path, answers: Path, tmp_path: Path, content: dict[str, str] | None, words: str
) -> None:
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    done = scored(answers, "--similarity", "wavlm", "--similarity-model", folder, "--voice", SPOKEN)
    assert done.exit_code == 1 and words in done.stderr and "microsoft/wavlm-base-plus-sv" in done.stderr


def test_a_voice_without_speech_is_refused(wavlm: Path, answers: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "voice.wav", np.zeros(32_000), 16_000)
    done = scored(answers, "--similarity", "wavlm", "--similarity-model", wavlm, "--voice", tmp_path / "voice.wav")
    assert done.exit_code == 1 and "less than 1 s of speech" in done.stderr


def test_an_embedding_of_zeros_has_no_cosine() -> None:
    for wrong in (np.zeros(3), np.full(3, np.nan)):
        with pytest.raises(ValueError, match="0 or not finite"):
            cosine(np.ones(3), wrong)
    assert cosine(np.array([1.0, 0]), np.array([3.0, 4])) == pytest.approx(0.6)


@pytest.mark.parametrize("library, kind", [("transformers", "wavlm"), ("resemblyzer", "resemblyzer")])
def test_a_missing_library_is_named(
    answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, kind: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    model = ("--similarity-model", tmp_path) if kind == "wavlm" else ()
    done = scored(answers, "--similarity", kind, *model, "--voice", SPOKEN)
    assert done.exit_code == 1 and "pip install" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (("--similarity", "wavlm"), 2, "--similarity-model"),
        (("--similarity", "resemblyzer", "--similarity-model", "."), 2, "go together"),
        (("--voice", SPOKEN), 2, "--voice is for --similarity"),
        (("--similarity", "resemblyzer"), 1, "voices listen"),
    ],
)
def test_mistakes_are_messages(answers: Path, arguments: tuple[str | Path, ...], code: int, words: str) -> None:
    done = scored(answers, *arguments)
    assert done.exit_code == code and words in done.stderr


def test_the_voice_of_a_run_with_a_recording_is_found(
    wavlm: Path, tiny_bundle: Bundle, answers: Path, tmp_path: Path
) -> None:
    """The run notes the recording, and the score compares with it while it is the same."""
    voice, out, heard = tmp_path / "voice.wav", tmp_path / "answers", speech_in(read_recording(SPOKEN))
    assert heard is not None
    soundfile.write(voice, heard[:24_000], 16_000)
    write_speech(tmp_path / "data" / SAMPLE / "input.wav", 0.5)
    arguments = ["fdb", "run", tiny_bundle.folder, tmp_path / "data", "--out", out, "--slots", "1", "--voice", voice]
    arguments += ["--text-prompt", ""]
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    for name in ("output.json", "interrupt.json"):
        shutil.copy(answers / SAMPLE / name, out / SAMPLE / name)
    shutil.copy(voice, out / SAMPLE / "output.wav")
    compared = "--similarity", "wavlm", "--similarity-model", wavlm
    assert likeness(scored(out, *compared)) == pytest.approx(1, abs=1e-5)
    shutil.copy(OTHER, voice)
    done = scored(out, *compared)
    assert done.exit_code == 1 and "--voice FILE" in done.stderr
