"""A small SentencePiece model for random checkpoints: called by `export.synth` and by the training of a small model."""

import io
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

TRAINED_PIECES = 2000

TEXT = """\
<system> You enjoy having a good conversation. <system>
Hello, how are you doing today? I am doing well, thank you so much for asking. What would you like to talk about?
Well, I was thinking about the weekend. We could drive to the lake if the weather is nice, or stay at home and cook.
That sounds lovely! I have not been there since last summer, and I still remember how warm the water was.
Do you know what time the market opens? I think it is at eight, but let me check that for you just to be sure.
Oh, really? That is quite early. Maybe my sister wants to come along, she always finds the best bread and cheese.
Sorry, could you say that again? You were breaking up a little, and I only heard the first part of your question.
Of course. I said that we should bring a few blankets, some fruit, and a good book for the quiet hours.
You are a wise and friendly teacher. Answer questions or give advice in a clear and engaging way.
Okay, great. So the train leaves at ten, right? Yes, exactly, and it takes about twenty minutes to get there.
Hmm, let me think. Yeah, I guess you could just walk, because the station is right next to the old bridge.
Thanks, I really appreciate your help. No problem at all, have a great day, and see you again soon!
""".splitlines()


def write_tokenizer(path: Path, size: int, text: Sequence[str] = TEXT) -> None:
    """A SentencePiece model trained on lines of text, filled up to `size` pieces with words that encoding never picks."""
    trained = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=trained, model_type="bpe", vocab_size=min(size, TRAINED_PIECES),
        hard_vocab_limit=False, byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, num_threads=1, minloglevel=2,
    )  # fmt: skip
    model = ModelProto.FromString(trained.getvalue())
    for i in range(len(model.pieces), size):
        model.pieces.add(piece=_word(i), score=-1e9, type=ModelProto.SentencePiece.UNUSED)
    model.trainer_spec.vocab_size = size
    path.write_bytes(model.SerializeToString(deterministic=True))


def _word(number: int) -> str:
    """An invented word of three syllables; numbers below a million give different words."""
    number = number * 7919 % 1_000_000  # neighbours look different
    syllables = [c + v for c in "bcdfghjklmnprstvwxyz" for v in "aeiou"]
    return "▁" + "".join(syllables[number // 100**i % 100] for i in range(3))
