"""A miniature of Full-Duplex-Bench: ten samples in its folders, of versions 1.0 and 1.5, and one of ServiceDuplexBench.

Sentences, events and the role are ours.

`espeak-ng` speaks them where it is installed. Elsewhere they are sound that is like speech, which is as good for a run.
By hand: python tests/miniature.py FOLDER
"""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import read_audio
from pplex.runtime.synthetic_speech import speech_like

RATE_HZ = 24_000
SAMPLES = {
    "synthetic_pause_handling/1": "I went to the market, and then",
    "candor_pause_handling/2": "So my sister, you know, she moved",
    "candor_turn_taking/1": "What do you like to cook?",
    "candor_turn_taking/2": "Where did you grow up?",
    "candor_turn_taking/10": "Do you have any brothers?",
    "icc_backchannel/1": "I was in the garden all day and planted beans.",
    "icc_backchannel/2": "The train was late again this morning.",
    "synthetic_user_interruption/1": "Tell me about the moon. Wait, why is it round?",
    "synthetic_user_interruption/2": "How do I bake bread? No, a cake.",
    "background_speech/1": "Could you repeat that?",
    "service/0": "When do you close today?",
}
CLEAN = "background_speech/1"  # of version 1.5: it has the recording without the other speaker, too
SERVICE, ROLE = "service/0", "You are Ann, a baker. You close at six."
EVENTS = {"turn_taking": "turn_taking", "pause_handling": "pause", "user_interruption": "interrupt"}


def make_miniature(folder: Path) -> Path:
    """Write the data set; returns its folder."""
    for i, (name, text) in enumerate(SAMPLES.items()):
        sample = folder / name
        sample.mkdir(parents=True)
        pcm = spoken(text, i)
        length_s = len(pcm) / RATE_HZ
        soundfile.write(sample / "input.wav", np.concatenate([pcm, np.zeros(RATE_HZ // 2)]), RATE_HZ)
        if name == CLEAN:
            soundfile.write(sample / "clean_input.wav", pcm, RATE_HZ)
            _write(sample / "metadata.json", {"timestamps": [length_s / 2, length_s]})
        _write(sample / "transcription.json", [{"text": text, "timestamp": [0.0, length_s]}])
        if name == SERVICE:
            _write(sample / "metadata.json", {"prompt_text": ROLE, "question_text": text})
        for key, event in EVENTS.items():
            if key in name:
                _write(sample / f"{event}.json", [{"text": text, "timestamp": [length_s, length_s]}])
    return folder


def spoken(text: str, seed: int) -> Pcm:
    """The text as speech, or as sound of its length."""
    if not shutil.which("espeak-ng"):
        return speech_like(2 + len(text) // 2, 1920, seed)
    done = subprocess.run(["espeak-ng", "--stdout", "-v", "en-us", text], capture_output=True, check=True)
    return read_audio(io.BytesIO(done.stdout))


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


if __name__ == "__main__":
    make_miniature(Path(sys.argv[1]))
