"""Text that an agent is to say, as words of tokens: called by `runtime.session`.

Numbers are spelled in English. Text that has no certain pronunciation is refused, because the model would guess it.
"""

import re
import unicodedata
from functools import cache
from threading import Lock
from typing import Any

from pplex.runtime.errors import SteeringError
from pplex.runtime.text import RESERVED, Tokenizer

MAX_CHARACTERS, MAX_WORDS = 2000, 300  # of one text: about two minutes of speech
Words = tuple[tuple[int, ...], ...]

_PUNCTUATION = set(".,;:!?'\"-()\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u00a1\u00bf\u3001\u3002")
_COINS = {  # one, several, one hundredth, several hundredths
    "$": ("dollar", "dollars", "cent", "cents"),
    "\u20ac": ("euro", "euros", "cent", "cents"),
    "\u00a3": ("pound", "pounds", "penny", "pence"),
}
_NUMBER = re.compile(
    r"(?<![\w.,:/+-])(?P<coin>[$\u20ac\u00a3])?(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
    r"(?P<decimals>\.[0-9]+)?(?P<suffix>%|st|nd|rd|th)?(?![\w:/%$\u20ac\u00a3+-]|[.,]\d)"
)
_MAX_DIGITS = 12
_turn = Lock()  # inflect keeps state while it spells, and a server spells in two threads


def words_of(text: str, tokenizer: Tokenizer) -> Words:
    """The tokens of each word of `text`, in order. Raises SteeringError."""
    if not isinstance(text, str):
        raise SteeringError(f"The text is {text!r}, but must be a string.")
    if len(text) > MAX_CHARACTERS:
        raise SteeringError(f"The text has {len(text)} characters, but may have {MAX_CHARACTERS}. Say it in parts.")
    _check_number(sum(any(c.isalnum() for c in part) for part in text.split()))  # spelling many numbers takes long
    spelled = " ".join(spell_numbers(text).split())
    _check_characters(spelled)
    words = [_tokens(word, tokenizer) for word in _joined(spelled.split(" "))]
    _check_number(len(words))
    return tuple(words)


def _check_number(words: int) -> None:
    if words > MAX_WORDS:
        raise SteeringError(f"The text has {words} words, but may have {MAX_WORDS}. Say it in parts.")


def spell_numbers(text: str) -> str:
    """Numbers in English words, but those that can be read in several ways: times, telephone numbers, versions."""
    return _NUMBER.sub(_spelled, text)


def _tokens(word: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """A word's tokens. Punctuation marks that the tokenizer does not have are left out; letters may not be."""
    tokens = tokenizer.encode(word)
    if any(token < len(RESERVED) for token in tokens):
        kept = "".join(c for c in word if c not in _PUNCTUATION or min(tokenizer.encode(c)) >= len(RESERVED))
        tokens = tokenizer.encode(kept)
    if any(token < len(RESERVED) for token in tokens):
        raise SteeringError(f"This model's tokenizer cannot write {word!r}. Choose another word.")
    return tuple(tokens)


def _check_characters(text: str) -> None:
    odd = dict.fromkeys(
        c for c in text if c not in _PUNCTUATION and c != " " and unicodedata.category(c)[0] not in "LM"
    )
    if odd:
        shown = " ".join(c if c.isprintable() else ascii(c)[1:-1] for c in list(odd)[:8])
        raise SteeringError(
            f"The text holds {shown}, which can be said in several ways. Write it as words: ten thirty, twelve and a "
            "half, five five five. These are spelled: 42, 1,200, 3.5, 3rd, 5%, $40."
        )
    if not any(c.isalpha() for c in text):
        raise SteeringError("The text has no words. Give the agent something to say.")


def _joined(parts: list[str]) -> list[str]:
    """The words, each with the punctuation marks that stand alone after it, or before the first one."""
    words = list[str]()
    for part in parts:
        if words and not (any(c.isalpha() for c in part) and any(c.isalpha() for c in words[-1])):
            words[-1] += f" {part}"
        else:
            words.append(part)
    return words


def _spelled(match: re.Match[str]) -> str:
    """A number as words; unchanged if it can be read in several ways, such as 007."""
    coin, whole, suffix = match["coin"], match["whole"].replace(",", ""), match["suffix"]
    decimals = match["decimals"] or ""
    if len(whole) > _MAX_DIGITS or (len(whole) > 1 and whole[0] == "0"):
        return match[0]
    if coin:
        return match[0] if suffix or len(decimals) not in (0, 3) else _money(*_COINS[coin], int(whole), decimals[1:])
    if suffix and suffix != "%":
        right = not decimals and _inflect().ordinal(int(whole)) == f"{int(whole)}{suffix}"
        return _in_words(f"{whole}{suffix}") if right else match[0]
    return _in_words(whole + decimals) + (" percent" if suffix else "")


def _money(one: str, several: str, hundredth: str, hundredths: str, whole: int, decimals: str) -> str:
    small = int(decimals or 0)
    parts = [f"{_in_words(str(whole))} {one if whole == 1 else several}"] if whole or not small else []
    parts += [f"{_in_words(str(small))} {hundredth if small == 1 else hundredths}"] if small else []
    return " and ".join(parts)


def _in_words(number: str) -> str:
    with _turn:
        words: str = _inflect().number_to_words(number, andword="", comma="")
    return words


@cache
def _inflect() -> Any:
    import inflect  # here: it takes 1 to 3 s, and most conversations say no number

    return inflect.engine()
