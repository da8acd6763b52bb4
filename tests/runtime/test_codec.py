"""A codec graph alone gives what a whole runtime gives."""

from dataclasses import replace

import numpy as np
import pytest
from conversations import PCM, WAV

from pplex.runtime.audio import frames, normalize_loudness, read_audio
from pplex.runtime.bundle import Bundle
from pplex.runtime.codec import decode, encode
from pplex.runtime.errors import EngineError
from pplex.runtime.session import Runtime


def test_codes_equal_those_that_a_runtime_primes_with(tiny_bundle: Bundle, one: Runtime) -> None:
    """`Primer` encodes a recording in a slot. The recording, and noise as the second example."""
    for pcm in (frames(normalize_loudness(read_audio(WAV)), 1920), PCM[0, :40]):
        encoding = one.primer._encode(0, pcm)
        while True:
            try:
                next(encoding)
            except StopIteration as end:
                expected = end.value
                break
        np.testing.assert_array_equal(encode(tiny_bundle, pcm), expected)


def test_samples_equal_those_of_the_runtimes_decoder(tiny_bundle: Bundle, one: Runtime) -> None:
    codes = np.random.default_rng(0).integers(0, 2048, (30, 8))
    stages, expected = one.stages, []
    for frame in codes:
        stages.active[0], stages.agent_codes[0] = True, frame
        stages.run("mimi_decode", 1)
        expected.append(stages.pcm_out[0, 0].copy())
    stages.reset(0, 30)
    np.testing.assert_array_equal(decode(tiny_bundle, codes), np.concatenate(expected))


def test_only_the_graph_in_use_is_loaded(tiny_bundle: Bundle) -> None:
    """Adding a voice to a bundle of 5 GB must not need the memory for it, and not its GPU if only other graphs need it."""
    engines = {
        name: entry if name == "mimi_encode" else {**entry, "file": "nowhere", "kind": "tensorrt"}
        for name, entry in tiny_bundle.manifest["engines"].items()
    }
    others = replace(tiny_bundle, manifest={**tiny_bundle.manifest, "engines": engines})
    assert encode(others, PCM[0, :2]).shape == (2, 8)


def test_an_encoder_for_a_gpu_that_is_not_here_is_refused(tiny_bundle: Bundle) -> None:
    compiled = {
        name: {**entry, "kind": "tensorrt-rtx", "sm": 89, "gpu": "RTX 4090", "slots": 8, "made_with": "tensorrt-rtx 1"}
        for name, entry in tiny_bundle.manifest["engines"].items()
    }
    elsewhere = replace(tiny_bundle, manifest={**tiny_bundle.manifest, "engines": compiled})
    for device, why in (("cpu", "compiled for a GPU"), (None, "")):
        with pytest.raises(EngineError, match=f"runs the bundle's mimi_encode, which cannot run here\\.\n.*{why}"):
            encode(elsewhere, PCM[0, :2], device=device)
