"""What each form costs is measured: near to the drift that it causes, and kept in a file."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import TINY

from pplex.export import weights
from pplex.export.calibration import Calibration, calibrate, find_conversations, weights_mark
from pplex.export.checkpoint import Checkpoint, open_checkpoint
from pplex.export.conversations import ForcedHistory, without_voice
from pplex.export.exporter import rounded
from pplex.export.layers import even_noise
from pplex.export.probing import _probe
from pplex.export.sensitivity import Sensitivity, measure_sensitivity, sensitivity_nbytes
from pplex.export.storage import stored_as
from pplex.export.voices import find_voices
from pplex.runtime.errors import CalibrationError
from pplex.runtime.forms import FORMS, offered
from pplex.validate.drift import Forced, compare
from pplex.validate.reference import WholeTemporal


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(TINY / "checkpoint")


@pytest.fixture(scope="module")
def items(checkpoint: Checkpoint) -> list[ForcedHistory]:
    voices = find_voices(checkpoint.folder, checkpoint.config).voices
    return list(find_conversations("default", checkpoint, voices).items)


@pytest.fixture(scope="module")
def calibration(checkpoint: Checkpoint, items: list[ForcedHistory]) -> Calibration:
    voices = find_voices(checkpoint.folder, checkpoint.config).voices
    conversations = find_conversations("default", checkpoint, voices)
    return calibrate(checkpoint, checkpoint.config, conversations, lambda nbytes: None)


@pytest.fixture(scope="module")
def sensitivity(checkpoint: Checkpoint, calibration: Calibration) -> Sensitivity:
    voices = find_voices(checkpoint.folder, checkpoint.config).voices
    conversations = find_conversations("default", checkpoint, voices)
    read: list[int] = []
    found = measure_sensitivity(checkpoint, checkpoint.config, calibration, conversations, read.append)
    assert 0.5 * sensitivity_nbytes(checkpoint.config) < sum(read) <= sensitivity_nbytes(checkpoint.config)
    return found


def outputs(checkpoint: Checkpoint, item: ForcedHistory, changed: dict[str, torch.Tensor]) -> Forced:
    """The model's distributions for all known steps of a conversation, with `changed` matrices of "GRAPH.NAME"."""
    config, codes, steps = checkpoint.config, item.codes, len(item.codes)
    whole = WholeTemporal(checkpoint, config, steps, config.temporal.capacity + 1)
    depth = weights.load("depth", checkpoint, config)
    known = (item.target >= 0).all(1)
    with torch.inference_mode():
        x = whole.embed(codes, item.embedding)
        for i, (attend, feed) in enumerate(whole.layers()):
            layer = attend.args[0]  # type: ignore[attr-defined]
            replace_weights(layer, f"temporal.layers.{i}.", changed)
            x = x + attend(x)
            x = x + feed(x)
        replace_weights(depth, "depth.", changed)
        hidden = whole.hidden(x)[:-1][known]
        tokens, ones = item.target[known], torch.ones(int(known.sum()))
        noise = even_noise(len(hidden), config.num_streams)
        _, audio = depth(hidden, tokens[:, 0], tokens[:, 1 : 1 + config.depth_steps], *noise, ones, ones.long())
        return Forced(hidden.numpy(), whole.text_logits(hidden).numpy(), audio.numpy())


def replace_weights(module: torch.nn.Module, prefix: str, changed: dict[str, torch.Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if (new := changed.get(prefix + name)) is not None:
            parameter.data = new


@pytest.mark.parametrize(
    "graph, group",
    [
        ("temporal", "layers.0.attention.in_proj"),
        ("temporal", "layers.1.gating.linear_in"),
        ("depth", "steps.0.linear_in"),
        ("depth", "steps.3.in_proj"),
    ],
)
def test_the_cost_of_a_form_is_near_the_drift_that_it_causes(
    checkpoint: Checkpoint,
    items: list[ForcedHistory],
    sensitivity: Sensitivity,
    calibration: Calibration,
    graph: str,
    group: str,
) -> None:
    """int8 with one scale per column, whose errors are small enough for the formula. Here it is rounded without AWQ."""
    text, audio = sensitivity.of(compiled=True)[graph][group]["int8"]
    form, changed = FORMS["int8"], {}
    for name, source in weights.sources(graph, checkpoint.config, checkpoint).items():
        if name.endswith(".weight") and (name.startswith(f"{group}.") or _is_of(name, group)):
            weight = source.read(checkpoint)
            stored = stored_as(form, (weight.shape[0], weight.shape[1]))
            changed[f"{graph}.{name}"] = rounded(weight, stored, calibration.moments(graph, name), False).dequantized()
    assert changed
    drifts = []
    for item in (without_voice(items[0]), items[1]):
        exact, rough = outputs(checkpoint, item, {}), outputs(checkpoint, item, changed)
        following = item.target[(item.target >= 0).all(1)].numpy()
        found = compare(rough, exact, following[:, 0], following[:, 1:9])
        drifts.append((found.text_kl.mean(), found.audio_kl.mean()))
    measured = np.max(drifts, 0)
    assert measured[1] / 3 < audio < 3 * measured[1], "it is the estimate of one probe of a short conversation"
    assert measured[0] / 3 < text < 3 * measured[0] if graph == "temporal" else text == measured[0] == 0


def _is_of(name: str, group: str) -> bool:
    step, _, kind = group.rpartition(".")
    return name.startswith(f"{step}.") and f".{kind}." in name


def test_more_bits_cost_less_everywhere(sensitivity: Sensitivity) -> None:
    for compiled in (False, True):
        smallest, *_, largest = offered(compiled)
        for groups in sensitivity.of(compiled).values():
            for costs in groups.values():
                assert list(costs) == list(offered(compiled))
                assert sum(costs[largest]) < 0.1 * sum(costs[smallest])


def test_a_processor_adds_the_rounding_of_inputs(sensitivity: Sensitivity) -> None:
    on_processor, in_engine = sensitivity.of(False)["temporal"], sensitivity.of(True)["temporal"]
    for group, costs in on_processor.items():
        more = costs["int4/32"][0] - in_engine[group]["int4/32"][0]
        assert more >= 0 and (more > 0 or "linear_out" in group)  # its blocks of 8 are too short for the kernel


def test_probes_have_the_covariance_of_fishers_information() -> None:
    logits, random = torch.randn(6, generator=torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
    probes = _probe(logits.expand(200_000, 6), random)
    p = logits.softmax(-1)
    torch.testing.assert_close(probes.T @ probes / len(probes), torch.diag(p) - torch.outer(p, p), atol=2e-3, rtol=0)


def test_a_file_keeps_every_cost(sensitivity: Sensitivity, checkpoint: Checkpoint, tmp_path: Path) -> None:
    sensitivity.save(tmp_path / "a.json")
    assert Sensitivity.load(tmp_path / "a.json", checkpoint.config, weights_mark(checkpoint)) == sensitivity


def test_a_file_of_another_model_is_refused(sensitivity: Sensitivity, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, mark = tmp_path / "a.json", weights_mark(checkpoint)
    sensitivity.save(path)
    with pytest.raises(CalibrationError, match="other weights"):
        Sensitivity.load(path, checkpoint.config, "another")
    with pytest.raises(CalibrationError, match="other sizes or depth steps"):
        Sensitivity.load(path, replace(checkpoint.config, depth_steps=16), mark)
    for damaged in (
        "{",
        json.dumps({"source": {}, "costs": {}}),
        re.sub(r"\[(\s*\d)", r"[0, \1", path.read_text(), count=1),
    ):
        path.write_text(damaged)
        with pytest.raises(CalibrationError, match=r"a.json cannot be read .* Delete it"):
            Sensitivity.load(path, checkpoint.config, mark)


def test_the_measurement_is_the_same_twice(
    sensitivity: Sensitivity, checkpoint: Checkpoint, calibration: Calibration
) -> None:
    voices = find_voices(checkpoint.folder, checkpoint.config).voices
    conversations = find_conversations("default", checkpoint, voices)
    again = measure_sensitivity(checkpoint, checkpoint.config, calibration, conversations, lambda nbytes: None)
    assert again == sensitivity
