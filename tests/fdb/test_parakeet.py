"""Words through onnx-asr, by a tiny TDT model whose words are planted: known tokens at known frames of 80 ms."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from planted_agents import copied

from pplex.cli import main
from pplex.fdb.parakeet import ParakeetWords, words_of
from pplex.fdb.words import read_transcript

TURN, INTERRUPTION = "candor_turn_taking/5", "synthetic_user_interruption/1"
VOCABULARY = ("\u2581Hel", "lo", "\u2581you", ".", "<blk>")
BLANK, DURATIONS, FRAMES = 4, 5, 400
PLANTED = {10: (0, 2), 12: (1, 1), 20: (2, 1), 21: (3, 1)}  # frame: token, and the frames to its successor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as onnx-asr loads it. The encoder gives the number of each frame, and the decoder looks it up."""
    pytest.importorskip("onnx_asr", reason="onnx-asr is not installed: pip install 'pplex-export[parakeet]'")
    folder = tmp_path_factory.mktemp("models") / "tiny-tdt"
    folder.mkdir()
    logits = np.zeros((FRAMES, len(VOCABULARY) + DURATIONS), np.float32)  # [frame, token or blank, then durations]
    for frame in range(FRAMES):
        token, skip = PLANTED.get(frame, (BLANK, 1))
        logits[frame, [token, len(VOCABULARY) + skip]] = 1
    write_encoder(folder / "encoder-model.onnx")
    write_decoder(folder / "decoder_joint-model.onnx", logits)
    (folder / "vocab.txt").write_text("".join(f"{token} {i}\n" for i, token in enumerate(VOCABULARY)), encoding="utf-8")
    config = {"model_type": "nemo-conformer-tdt", "features_size": 128, "subsampling_factor": 8}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_encoder(path: Path) -> None:
    """audio_signal [1, 128, T] -> outputs [1, 1, T / 8], which count the frames."""
    from onnx import TensorProto as Kind
    from onnx import helper

    values = {"one": 1, "eight": 8, "zero": 0}
    constants = [helper.make_tensor(name, Kind.INT64, [], [value]) for name, value in values.items()]
    constants += [
        helper.make_tensor("shape", Kind.INT64, [3], [1, 1, -1]),
        helper.make_tensor("axes", Kind.INT64, [1], [0]),
    ]
    nodes = [
        helper.make_node("Sub", ["length", "one"], ["last"]),
        helper.make_node("Div", ["last", "eight"], ["steps"]),
        helper.make_node("Add", ["steps", "one"], ["encoded_lengths"]),
        helper.make_node("Squeeze", ["encoded_lengths", "axes"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["frames"]),
        helper.make_node("Cast", ["frames"], ["numbers"], to=Kind.FLOAT),
        helper.make_node("Reshape", ["numbers", "shape"], ["outputs"]),
    ]
    inputs = [
        helper.make_tensor_value_info("audio_signal", Kind.FLOAT, [1, 128, "T"]),
        helper.make_tensor_value_info("length", Kind.INT64, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info("outputs", Kind.FLOAT, [1, 1, "frames"]),
        helper.make_tensor_value_info("encoded_lengths", Kind.INT64, [1]),
    ]
    write_graph(path, nodes, inputs, outputs, constants)


def write_decoder(path: Path, logits: Any) -> None:
    """The logits of the frame in encoder_outputs [1, 1, 1]; the state stays as it is."""
    from onnx import TensorProto as Kind
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["encoder_outputs"], ["frame"], to=Kind.INT64),
        helper.make_node("Gather", ["logits", "frame"], ["outputs"]),
        *(helper.make_node("Identity", [f"input_states_{i}"], [f"output_states_{i}"]) for i in (1, 2)),
    ]
    inputs = [
        helper.make_tensor_value_info("encoder_outputs", Kind.FLOAT, [1, 1, 1]),
        helper.make_tensor_value_info("targets", Kind.INT32, [1, 1]),
        helper.make_tensor_value_info("target_length", Kind.INT32, [1]),
        *(helper.make_tensor_value_info(f"input_states_{i}", Kind.FLOAT, [2, 1, 4]) for i in (1, 2)),
    ]
    outputs = [
        helper.make_tensor_value_info("outputs", Kind.FLOAT, [1, 1, 1, logits.shape[1]]),
        *(helper.make_tensor_value_info(f"output_states_{i}", Kind.FLOAT, [2, 1, 4]) for i in (1, 2)),
    ]
    write_graph(path, nodes, inputs, outputs, [numpy_helper.from_array(logits, "logits")])


def write_graph(path: Path, nodes: Any, inputs: Any, outputs: Any, constants: Any) -> None:
    from onnx import helper, save_model

    graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def scored(folder: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["fdb", "score", *map(str, (folder, "--words", "parakeet", *arguments, "--json"))])


def unheard(folder: Path, name: str, seconds: float) -> Path:
    """A planted agent without words, and with a recording."""
    answers = copied(folder / "out", name)
    (answers / name / "output.json").unlink()
    soundfile.write(answers / name / "output.wav", np.zeros(int(seconds * 16_000)), 16_000)
    return answers


def words_in(path: Path) -> list[tuple[str, float, float]]:
    return [(word.text, round(word.start_s, 6), round(word.end_s, 6)) for word in read_transcript(path).words]


def test_words_and_their_times_are_written_and_kept(model: Path, tmp_path: Path) -> None:
    answers = unheard(tmp_path, TURN, 4)
    done = scored(answers, "--words-model", model)
    assert done.exit_code == 0, done.output
    path = answers / TURN / "output.json"
    assert words_in(path) == [("Hello", 0.8, 1.04), ("you.", 1.6, 1.76)]
    assert json.loads(done.stdout)["bundle"]["words"] == "tiny-tdt by onnx-asr"
    before = path.stat().st_mtime_ns
    scored(answers, "--words-model", model)
    assert path.stat().st_mtime_ns == before


def test_only_what_follows_an_interruption_is_heard(model: Path, tmp_path: Path) -> None:
    answers = unheard(tmp_path, INTERRUPTION, 20)
    since_s = json.loads((answers / INTERRUPTION / "interrupt.json").read_text())[0]["timestamp"][1]
    assert scored(answers, "--words-model", model).exit_code == 0
    assert words_in(answers / INTERRUPTION / "output.json")[0] == (
        "Hello",
        round(since_s + 0.8, 6),
        round(since_s + 1.04, 6),
    )


def test_nothing_after_an_interruption_is_no_word(model: Path, tmp_path: Path) -> None:
    answers = unheard(tmp_path, INTERRUPTION, 0.5)
    assert scored(answers, "--words-model", model).exit_code == 0
    assert words_in(answers / INTERRUPTION / "output.json") == []


def test_words_of_all_sides_are_made_for_a_class_of_version_1_5(model: Path, tmp_path: Path, judge_with: Any) -> None:
    """The data is not written to, and the user's words that are there are taken."""
    _, server = judge_with((200, '{"behaviour": "RESPOND"}'))
    data, answer = (tmp_path / name / "background_speech" / "1" for name in ("data", "out"))
    for folder, names in ((data, ("input", "clean_input")), (answer, ("output", "clean_output"))):
        folder.mkdir(parents=True)
        for name in names:
            soundfile.write(folder / f"{name}.wav", np.zeros(64_000), 16_000)
    (data / "metadata.json").write_text('{"timestamps": [1, 2]}')
    (data / "input.json").write_text('{"chunks": [{"text": "Hey", "timestamp": [1, 1.5]}]}')
    before = {path.name for path in data.iterdir()}
    judge = "--judge", server.url, "--judge-model", "m"
    done = scored(tmp_path / "out", "--data", tmp_path / "data", "--words-model", model, *judge)
    assert done.exit_code == 0, done.output
    asked = json.loads(server.requests[0][2]["messages"][1]["content"])
    assert asked["user_with"] == "Hey[1.0-1.5]"
    heard = "Hello[0.8-1.0] you.[1.6-1.8]"
    assert [asked[key] for key in ("user_without", "assistant_without", "assistant_with")] == [heard] * 3
    assert {path.name for path in data.iterdir()} == before
    assert words_in(answer / "clean_input.json") == words_in(answer / "output.json")


def test_tokens_without_a_space_continue_a_word() -> None:
    found = list(words_of(["a", "b", " ", " c"], [0, 0.08, 0.16, 0.24], 1))
    assert [(word.text, word.start_s) for word in found] == [("ab", 1), ("c", 1.24)]
    assert list(words_of([], [], 0)) == []


def test_a_damaged_model_is_refused(model: Path, tmp_path: Path) -> None:
    done = scored(copied(tmp_path / "out", TURN), "--words-model", tmp_path)
    assert done.exit_code == 1 and "cannot be loaded" in done.stderr and "encoder-model.onnx" in done.stderr


def test_only_known_names_are_downloaded(model: Path) -> None:
    from pplex.runtime.errors import ConfigError

    with pytest.raises(ConfigError, match="neither a folder nor a model"):
        ParakeetWords("someone/model")


def test_onnx_asr_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_asr", None)
    done = scored(copied(tmp_path / "out", TURN))
    assert done.exit_code == 1 and "pip install 'pplex-export[parakeet]'" in done.stderr
