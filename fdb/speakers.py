"""Embeddings of voices: vectors that are alike for recordings of one speaker. Called by `cli.fdb_score`."""

import warnings
from pathlib import Path

import numpy as np

from pplex.runtime.arrays import Floats, Pcm
from pplex.runtime.errors import ConfigError
from pplex.runtime.files import is_folder
from pplex.runtime.libraries import install_command, load_library
from pplex.validate.speech.detector import VAD_RATE_HZ


class WavLM:
    """A WavLM with a head for speakers (transformers' WavLMForXVector), from a folder; the network is never used.

    Raises ConfigError if the folder has no such model, LibraryError without transformers.
    """

    def __init__(self, folder: Path):
        if not is_folder(folder):
            raise ConfigError(
                f"{folder} is not a folder. Download a WavLM for speakers, and name its folder:\n"
                "hf download microsoft/wavlm-base-plus-sv --local-dir FOLDER"
            )
        library = load_library(
            "transformers",
            f"--similarity wavlm needs transformers, which is not installed: {install_command('transformers')}",
        )
        library.utils.logging.disable_progress_bar()
        self.name = f"WavLM ({folder.resolve().name})"
        try:
            self._prepare = library.Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
            self._model, loaded = library.WavLMForXVector.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # the library raises anything for a damaged folder
            raise _unusable(folder, " ".join(str(error).split())[:300]) from error
        if loaded["missing_keys"]:  # the library draws them at random
            raise _unusable(
                folder, f"it lacks {len(loaded['missing_keys'])} weights, such as {min(loaded['missing_keys'])}"
            )
        self._model.eval()

    def __call__(self, pcm: Pcm) -> Floats:
        """The embedding [D] of speech [samples] at 16 kHz."""
        import torch

        heard = self._prepare(pcm, sampling_rate=VAD_RATE_HZ, return_tensors="pt").input_values  # [1, samples]
        with torch.inference_mode():
            embedding: Floats = self._model(heard).embeddings[0].double().numpy()
        return embedding


class Resemblyzer:
    """resemblyzer with the weights in its package. Raises LibraryError if it is not installed or cannot be loaded."""

    name = "resemblyzer, a smoke test that only separates unlike voices"

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it uses an old name in scipy
            library = load_library(
                "resemblyzer",
                f"--similarity resemblyzer needs resemblyzer, which is not installed: {install_command('resemblyzer')}",
            )
        self._model = library.VoiceEncoder("cpu", verbose=False)

    def __call__(self, pcm: Pcm) -> Floats:
        """The embedding [256] of speech [samples] at 16 kHz."""
        return np.asarray(self._model.embed_utterance(pcm), np.float64)


def _unusable(folder: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{folder} is no WavLM for speakers ({why}).\n"
        "It needs the files of a WavLMForXVector, such as microsoft/wavlm-base-plus-sv, with preprocessor_config.json."
    )
