"""Text in and out: personas to tokens, and a session's text tokens to text.

Called by the runtime's sessions and the command line.
"""

import codecs
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from pplex.runtime.errors import BundleError, PromptError

RESERVED = ("EPAD", "BOS", "EOS", "PAD")  # the model's meaning of tokens 0-3; the tokenizer's file has other names
UNKNOWN = "\ufffd"  # for a token without text: a model may have more tokens than its tokenizer
SYSTEM_TAG = "<system>"


def wrap_persona(text: str) -> str:
    """`text` between the tags the model expects, unless it has them; "" for an empty text."""
    text = text.strip()
    tagged = text.startswith(SYSTEM_TAG) and text.endswith(SYSTEM_TAG)
    return text if tagged or not text else f"{SYSTEM_TAG} {text} {SYSTEM_TAG}"


class Tokenizer:
    """A SentencePiece file and the text of each of its tokens. Raises BundleError if it cannot be read."""

    def __init__(self, path: Path):
        try:
            self._processor = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise BundleError(
                f"The text tokenizer {path} is missing or damaged: {error}\nCopy it again, or rebuild the bundle."
            ) from error
        ids = list(range(self._processor.vocab_size()))
        names = [name.replace("\u2581", " ") for name in self._processor.id_to_piece(ids)]
        self._pieces = [*RESERVED, *names[len(RESERVED) :]]
        self._bytes = {token: bytes([int(names[token][1:-1], 16)]) for token in ids if self._processor.is_byte(token)}

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`; raises PromptError if it holds half a surrogate pair, which is not valid text."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"The text is damaged at character {error.start}: this is half of a surrogate pair. Enter it again."
            ) from error
        tokens: list[int] = self._processor.encode(text)
        return tokens

    def encode_persona(self, text: str) -> list[int]:
        """Tokens of a persona between its tags; [] for an empty one."""
        return self.encode(wrap_persona(text))

    def piece(self, token: int) -> str:
        """A token's name: "PAD" and such for 0-3, a piece with its spaces, "<0xE2>" for a byte."""
        assert token >= 0, f"token {token} was never generated"
        return self._pieces[token] if token < len(self._pieces) else UNKNOWN

    def byte(self, token: int) -> bytes | None:
        """The byte of a byte token; None for every other token."""
        return self._bytes.get(token)


class TextStream:
    """The text of one session, token by token.

    A character without a piece comes as several tokens, the bytes of its UTF-8 form. It is returned with the last byte.
    Tokens 0-3 have no text and may come between the bytes. A piece between them turns the character into U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, "" if none; words start with a space."""
        if token < len(RESERVED):
            return ""
        byte = self._tokenizer.byte(token)
        if byte is not None:
            return self._decoder.decode(byte)
        return self.flush() + self._tokenizer.piece(token)

    def save(self) -> str:
        """The bytes of an unfinished character, as hexadecimal digits."""
        return self._decoder.getstate()[0].hex()

    def restore(self, saved: str) -> None:
        """Write back what `save` gave."""
        self._decoder.setstate((bytes.fromhex(saved), 0))

    def reset(self) -> None:
        """Drop an unfinished character."""
        self._decoder.reset()

    def flush(self) -> str:
        """At the end of a conversation: U+FFFD if a character is unfinished, else ""."""
        return self._decoder.decode(b"", final=True)
