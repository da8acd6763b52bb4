"""Words from the model's own text stream, agent_text.json: no speech recognition is needed. Called by `cli.fdb`.

The text stream runs ahead of the voice or behind it, and has words that were never said aloud. So these figures are another
thing than the benchmark's.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from pplex.fdb.layout import AGENT_TEXT, CLEAN_AGENT_TEXT, CLEAN_OUTPUT, OUTPUT, Sample
from pplex.fdb.scoring import stored_words
from pplex.fdb.words import Transcript, Word, read_json
from pplex.runtime.errors import SampleError
from pplex.runtime.text import RESERVED

FRAME_S = 0.08
NAME = "the model's own text stream"
_TEXTS = {OUTPUT: AGENT_TEXT, CLEAN_OUTPUT: CLEAN_AGENT_TEXT}
_BYTE = re.compile("<0x([0-9A-F]{2})>")


def agent_words(sample: Sample, since_s: float, wav: str = OUTPUT) -> Transcript:
    """The words after `since_s`, from their first to their last frame; the user's as they are. Raises SampleError."""
    if wav not in _TEXTS:
        return stored_words(sample, since_s, wav)
    pieces = read_json(sample.folder / _TEXTS[wav])
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise SampleError(f"{_TEXTS[wav]} is not a list of text pieces")
    return Transcript(tuple(word for word in words_of(pieces) if word.start_s >= since_s), NAME)


def words_of(pieces: Sequence[str]) -> Iterable[Word]:
    """Words from the text piece of each frame: one begins where a piece begins with a space."""
    said = [(i, piece) for i, piece in enumerate(pieces) if piece not in RESERVED]
    starts = [at for at, (_, piece) in enumerate(said) if piece.startswith(" ") or at == 0]
    for start, end in pairwise([*starts, len(said)]):
        text = _text(piece for _, piece in said[start:end])
        if text:
            yield Word(text, said[start][0] * FRAME_S, (said[end - 1][0] + 1) * FRAME_S)


def _text(pieces: Iterable[str]) -> str:
    """The text of pieces, some of which may be bytes such as <0xE2>."""
    parts = (bytes.fromhex(byte[1]) if (byte := _BYTE.fullmatch(piece)) else piece.encode() for piece in pieces)
    return b"".join(parts).decode(errors="replace").strip()
