"""Words by NVIDIA's parakeet-tdt, the benchmark's own recogniser, through onnx-asr. Called by `cli.fdb_score`.

As in the benchmark it hears the whole recording, of an interruption what follows it.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from pplex.fdb.recognition import Recognition
from pplex.fdb.segments import Recording
from pplex.fdb.words import Word
from pplex.runtime.errors import ConfigError
from pplex.runtime.files import is_folder
from pplex.runtime.libraries import install_command, load_library
from pplex.validate.speech.detector import VAD_RATE_HZ

MODELS = ("nemo-parakeet-tdt-0.6b-v2", "nemo-parakeet-tdt-0.6b-v3")  # onnx-asr can download these
FRAME_S = 0.08  # of the encoder: the times of tokens are multiples of it


class ParakeetWords(Recognition):
    """Words of the whole recording. Without a folder, onnx-asr takes the model from its cache, or downloads it.

    Raises ConfigError if the model cannot be loaded, LibraryError without onnx-asr.
    """

    def __init__(self, model: str, threads: int | None = None):
        library = load_library(
            "onnx_asr", f"--words parakeet needs onnx-asr, which is not installed: {install_command('onnx_asr')}"
        )
        runtime = load_library("onnxruntime", f"--words parakeet needs onnxruntime: {install_command('onnxruntime')}")
        folder = Path(model) if is_folder(Path(model)) else None
        if folder is None and model not in MODELS:
            raise ConfigError(f"{model} is neither a folder nor a model for --words parakeet: {', '.join(MODELS)}.")
        super().__init__(f"{folder.resolve().name if folder else model} by onnx-asr", "parakeet")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        kind = "nemo-conformer-tdt" if folder else model
        try:
            loaded = library.load_model(kind, folder, sess_options=options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the libraries below raise anything: for a network, a damaged file
            raise ConfigError(
                f"The parakeet model {model} cannot be loaded ({' '.join(str(error).split())[:300]}).\n"
                "Its folder has encoder-model.onnx, decoder_joint-model.onnx, vocab.txt and config.json, as in the "
                "repository istupakov/parakeet-tdt-0.6b-v2-onnx."
            ) from error
        self._model = loaded.with_timestamps()

    def hear(self, recording: Recording, since_s: float) -> Iterable[Word]:
        pcm = recording.pcm[int(since_s * VAD_RATE_HZ) :]
        if not len(pcm):
            return ()
        found = self._model.recognize(pcm, sample_rate=VAD_RATE_HZ)
        return words_of(found.tokens or (), found.timestamps or (), since_s)


def words_of(tokens: Sequence[str], starts_s: Sequence[float], since_s: float) -> Iterator[Word]:
    """Words from tokens and their starts: one begins where a token begins with a space.

    onnx-asr does not give the length of a token, so a word ends one frame after the start of its last token.
    """
    begins = [i for i, token in enumerate(tokens) if token.startswith(" ") or i == 0]
    for first, end in pairwise([*begins, len(tokens)]):
        text = "".join(tokens[first:end]).strip()
        if text:
            yield Word(text, since_s + starts_s[first], since_s + starts_s[end - 1] + FRAME_S)
