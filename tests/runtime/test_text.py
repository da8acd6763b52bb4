"""Personas to tokens and tokens to text, with the golden tokenizer and with small ones that fall back to bytes."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from pplex.runtime.errors import BundleError, PromptError
from pplex.runtime.text import TextStream, Tokenizer, wrap_persona

GOLDEN = Path(__file__).parents[1] / "golden/tiny"
GOLDEN_TOKENIZER = GOLDEN / "checkpoint/tokenizer_spm_32k_3.model"
EPAD, PAD = 0, 3


@pytest.fixture(scope="module", params=["identity", "nmt_nfkc"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer with byte pieces; the first keeps text unchanged, the second normalises it."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog", "how are you today? héllo"] * 20),
        model_writer=model,
        vocab_size=330,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name=request.param,
        remove_extra_whitespaces=request.param != "identity",
        pad_id=PAD,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / f"{request.param}.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer(path)


@pytest.fixture(scope="module")
def processor(path: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(path))


def pushed(tokenizer: Tokenizer, tokens: list[int]) -> str:
    stream = TextStream(tokenizer)
    return "".join(map(stream.push, tokens)) + stream.flush()


class TestTokenizer:
    def test_encodes_the_golden_persona(self) -> None:
        expected = load_file(GOLDEN / "expected/conversation_greedy.safetensors")["prompt_text_tokens"].tolist()
        assert Tokenizer(GOLDEN_TOKENIZER).encode_persona("You enjoy having a good conversation.") == expected

    @pytest.mark.parametrize(
        ("persona", "wrapped"),
        [
            ("Be kind.", "<system> Be kind. <system>"),
            ("  Be kind.\n", "<system> Be kind. <system>"),
            (" <system> Be kind. <system> ", "<system> Be kind. <system>"),
            ("<system> Be kind.", "<system> <system> Be kind. <system>"),
            ("", ""),
            (" \n\t", ""),
        ],
    )
    def test_wrap_persona(self, persona: str, wrapped: str) -> None:
        assert wrap_persona(persona) == wrapped

    def test_empty_persona_has_no_tokens(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.encode_persona(" \n") == []

    def test_first_tokens_have_the_models_names(self, tokenizer: Tokenizer) -> None:
        assert [tokenizer.piece(token) for token in range(4)] == ["EPAD", "BOS", "EOS", "PAD"]

    def test_pieces_show_spaces(self, tokenizer: Tokenizer, processor: SentencePieceProcessor) -> None:
        assert tokenizer.piece(processor.piece_to_id("\u2581the")) == " the"

    def test_byte_tokens_equal_those_of_sentencepiece(
        self, tokenizer: Tokenizer, processor: SentencePieceProcessor
    ) -> None:
        marked = [token for token in range(processor.vocab_size()) if processor.is_byte(token)]
        assert [tokenizer.byte(token) for token in marked] == [bytes([value]) for value in range(256)]
        assert tokenizer.piece(marked[0xE2]) == "<0xE2>"
        assert tokenizer.byte(PAD) is None

    def test_an_unknown_token_is_refused(self) -> None:
        """The tiny model has 400 text tokens and its tokenizer 160: an unknown token must not end the session."""
        assert Tokenizer(GOLDEN_TOKENIZER).piece(399) == "\ufffd"

    def test_half_a_surrogate_pair_is_refused(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(PromptError, match="at character 3"):
            tokenizer.encode("ab \ud800")

    @pytest.mark.parametrize("content", [None, b"", b"not a tokenizer", GOLDEN_TOKENIZER.read_bytes()[:100_000]])
    def test_a_missing_or_damaged_file_is_refused(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "tokenizer.model"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BundleError, match=r"tokenizer\.model is missing or damaged"):
            Tokenizer(path)


class TestTextStream:
    def test_words_start_with_a_space_and_padding_has_no_text(self, tokenizer: Tokenizer) -> None:
        stream, tokens = TextStream(tokenizer), tokenizer.encode("the fox")
        padded = [said for token in tokens for said in (stream.push(PAD), stream.push(token), stream.push(EPAD))]
        assert "".join(padded) == " the fox"

    def test_character_comes_with_its_last_byte(self, tokenizer: Tokenizer) -> None:
        stream = TextStream(tokenizer)
        assert [stream.push(token) for token in tokenizer.encode("ä🦄")][-6:] == ["", "ä", "", "", "", "🦄"]

    @pytest.mark.parametrize("token", range(4))
    def test_padding_does_not_interrupt_a_character(self, tokenizer: Tokenizer, token: int) -> None:
        stream = TextStream(tokenizer)
        said = [stream.push(each) for byte in tokenizer.encode("🦄") for each in (byte, token)]
        assert "".join(said).strip() == "🦄"

    def test_piece_interrupts_a_character(self, tokenizer: Tokenizer) -> None:
        unicorn, the = tokenizer.encode("🦄")[-4:], tokenizer.encode("the")
        assert pushed(tokenizer, [*unicorn[:3], *the, *unicorn]) == "\ufffd the🦄"

    def test_flush_ends_an_unfinished_character(self, tokenizer: Tokenizer) -> None:
        stream = TextStream(tokenizer)
        for token in tokenizer.encode("🦄")[-4:-1]:
            stream.push(token)
        assert [stream.flush(), stream.flush()] == ["\ufffd", ""]

    def test_streams_do_not_share_bytes(self, tokenizer: Tokenizer) -> None:
        first, second = TextStream(tokenizer), TextStream(tokenizer)
        unicorn = tokenizer.encode("🦄")[-4:]
        assert [stream.push(token) for token in unicorn for stream in (first, second)][-2:] == ["🦄", "🦄"]

    def test_an_unknown_token_is_refused(self) -> None:
        assert TextStream(Tokenizer(GOLDEN_TOKENIZER)).push(399) == "\ufffd"


@given(text=st.text())
def test_any_text_comes_back_as_sentencepiece_normalises_it(
    tokenizer: Tokenizer, processor: SentencePieceProcessor, text: str
) -> None:
    tokens = tokenizer.encode(text)
    said = pushed(tokenizer, tokens)
    assert said.removeprefix(" ") == processor.decode(tokens)
    assert said == processor.normalize(text).replace("\u2581", " ")


@given(tokens=st.lists(st.integers(0, 600)))
def test_any_tokens_give_text_and_padding_changes_nothing(tokenizer: Tokenizer, tokens: list[int]) -> None:
    said = pushed(tokenizer, tokens)
    said.encode()
    assert pushed(tokenizer, [each for token in tokens for each in (PAD, token)]) == said
