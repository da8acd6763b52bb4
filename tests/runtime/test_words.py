"""Text as words of tokens: spelled numbers, refusals, and the text that the tokens stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pplex.runtime.words as words_module
from pplex.runtime.bundle import TOKENIZER_FILE, Bundle
from pplex.runtime.errors import SteeringError
from pplex.runtime.text import RESERVED, TextStream, Tokenizer
from pplex.runtime.words import MAX_CHARACTERS, MAX_WORDS, spell_numbers, words_of


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Bundle) -> Tokenizer:
    return Tokenizer(tiny_bundle.path(TOKENIZER_FILE))


def written(tokenizer: Tokenizer, text: str) -> str:
    """The text that the model shows when it says the tokens."""
    stream = TextStream(tokenizer)
    return "".join(stream.push(token) for word in words_of(text, tokenizer) for token in word) + stream.flush()


def test_every_word_begins_with_its_own_token(tokenizer: Tokenizer) -> None:
    words = words_of("  the friendly\nteacher ", tokenizer)
    assert len(words) == 3 and all(min(word) >= len(RESERVED) for word in words)
    assert all(tokenizer.piece(word[0]).startswith(" ") for word in words)
    assert written(tokenizer, "  the friendly\nteacher ") == " the friendly teacher"


@pytest.mark.parametrize(
    "text, spelled",
    [
        ("42 of them", "forty-two of them"),
        ("1,200 or 1200", "one thousand two hundred or one thousand two hundred"),
        ("at 3.5 percent", "at three point five percent"),
        ("5% off", "five percent off"),
        ("the 3rd and the 22nd", "the third and the twenty-second"),
        ("it is $40", "it is forty dollars"),
        ("it is $1.50", "it is one dollar and fifty cents"),
        ("it is $0.01", "it is one cent"),
        ("\u00a32.02", "two pounds and two pence"),
        ("\u20ac1,000", "one thousand euros"),
        ("0", "zero"),
    ],
)
def test_numbers_are_spelled(text: str, spelled: str) -> None:
    assert spell_numbers(text) == spelled


def test_a_number_is_said_as_its_words(tokenizer: Tokenizer) -> None:
    assert words_of("42 of them", tokenizer) == words_of("forty-two of them", tokenizer)


@pytest.mark.parametrize(
    "text",
    [
        "at 10:30", "call 555-1234", "007", "1st of 2th", "version 1.2.3", "2x", "a/b", "me@there", "so #1", "1,00",
        "$1.5", "$5%", "-3", "+3", "3-4", "10 000.0.0", "1" * 13, "half \u00bd", "x\u00b2", "\u2603", "tab\x00", "\u0663",
    ],
)  # fmt: skip
def test_text_with_several_readings_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(SteeringError, match="can be said in several ways"):
        words_of(text, tokenizer)


@pytest.mark.parametrize("text", ["", "   \n", "...", "- ! -"])
def test_text_without_words_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(SteeringError, match="no words"):
        words_of(text, tokenizer)


def test_letters_that_the_tokenizer_does_not_have_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(SteeringError, match="cannot write 'xylophone'"):
        words_of("the xylophone", tokenizer)


def test_punctuation_stays_with_its_word_or_is_left_out(tokenizer: Tokenizer) -> None:
    assert words_of("good , night !", tokenizer) == words_of("good night", tokenizer)
    assert len(words_of("good - night", tokenizer)) == 2


def test_long_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(SteeringError, match=f"may have {MAX_CHARACTERS}"):
        words_of("a" * 1_000_000, tokenizer)
    with pytest.raises(SteeringError, match=f"may have {MAX_WORDS}"):
        words_of("a " * (MAX_WORDS + 1), tokenizer)
    assert len(words_of("a " * MAX_WORDS, tokenizer)) == MAX_WORDS


def test_too_many_numbers_are_refused_before_they_are_spelled(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spelling a thousand numbers takes longer than a frame."""
    monkeypatch.setattr(words_module, "spell_numbers", lambda text: pytest.fail("spelled"))
    with pytest.raises(SteeringError, match=f"has 1000 words, but may have {MAX_WORDS}"):
        words_of("7 " * 1000, tokenizer)


@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused_with_a_reason(tokenizer: Tokenizer, text: str) -> None:
    try:
        words = words_of(text, tokenizer)
    except SteeringError as error:
        assert str(error)
    else:
        assert words and all(word and min(word) >= len(RESERVED) for word in words)
