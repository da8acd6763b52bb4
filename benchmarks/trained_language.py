"""Trains a small language model, temporal and depth transformer, on forced tokens. Called by trained.py.

Only LIVE codes of each codebook ever occur. So training uses a compact model with these codes, one that stands for all
others, and the initial token; trained_checkpoint.py writes it in full.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplex.export.depth import Depth, DepthStep
from pplex.export.layers import Linear, RMSNorm, embed
from pplex.export.temporal import Temporal, ring_places
from pplex.runtime.arrays import Tokens
from pplex.runtime.config import CODEBOOKS, END_OF_PADDING, ModelConfig

PADDING_WEIGHT = 0.5  # of the loss of text padding: most frames have it
EMBEDDING_STD = 0.3
DECAY = 0.05
WARM_UP = 0.04  # share of the steps
KEPT = 0.5  # share of the frames of a batch that the depth transformer learns from


@dataclass(frozen=True)
class Corpus:
    """Columns [N, T + 1, 17] of compact tokens, -1 for none, and the first column [N] whose tokens are predicted."""

    columns: Tokens
    first: Tokens


def compact(config: ModelConfig, live: int) -> ModelConfig:
    """The sizes of the compact model: codes 0 to live - 1, code `live` for all others, and the initial token."""
    return replace(config, audio_card=live + 1)


class Language(nn.Module):
    """Both transformers, with logits for all steps at once. `others`: how many codes the last one stands for."""

    def __init__(self, config: ModelConfig, others: int):
        super().__init__()
        self.config, self.others = config, others
        self.temporal, self.depth = Temporal(config), Depth(config)
        self.requires_grad_(True)  # the modules are made for export
        _initialize(self)

    def hidden(self, codes: Tensor) -> Tensor:
        """Hidden states [B, T, dim] for the columns [B, T, 17] of a conversation from its beginning."""
        temporal, (rows, length) = self.temporal, codes.shape[:2]
        stack = temporal.stack
        x = temporal.embed_streams(codes)
        ring = torch.zeros(rows, stack.heads, length, stack.head_dim)
        position, steps = torch.zeros(rows, dtype=torch.int64), torch.arange(length)
        where = ring_places(position, steps, torch.arange(length + 1), stack)
        mask = where[1]
        assert mask is not None
        where = (where[0], mask[..., :length], *where[2:])
        for layer in temporal.layers:
            x, _, _ = layer(x, ring, ring, *where)
        hidden: Tensor = temporal.out_norm(x)
        return hidden

    def text_logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.temporal.text_linear(hidden)
        return logits

    def audio_logits(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Logits [n, 8, codes] for hidden [n, dim] and the tokens of the same step, target [n, 1 + 8]."""
        depth, logits = self.depth, list[Tensor]()
        past: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(depth.stack.layers)]
        for k, step in enumerate(depth.steps):
            assert isinstance(step, DepthStep)
            x = (step.input(hidden) + embed(step.emb, target[:, k]))[:, None]
            for layer in range(depth.stack.layers):
                x = x + depth.attend(step, layer, depth.norm1[layer](x), past[layer])
                x = x + step.gating[layer](depth.norm2[layer](x))
            logits.append(step.output(x.squeeze(1)))
        return self._weighed(torch.stack(logits, 1))

    def _weighed(self, logits: Tensor) -> Tensor:
        """The last logit stands for `others` codes."""
        return torch.cat([logits[..., :-1], logits[..., -1:] + math.log(self.others)], -1)

    def losses(self, columns: Tensor, first: Tensor, kept: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Losses in nats of columns [B, T + 1, 17]: text [n], audio [m, 8], and the text's targets [n].

        n are all predicted steps, m a random share `kept` of them.
        """
        codes, target = columns[:, :-1], columns[:, 1:, : 1 + CODEBOOKS]
        hidden = self.hidden(codes)
        counts = (torch.arange(1, columns.shape[1]) >= first[:, None]) & (target[..., 0] >= 0)
        hidden, target = hidden[counts], target[counts]
        text = F.cross_entropy(self.text_logits(hidden), target[:, 0], reduction="none")
        some = torch.rand(len(hidden)) < kept
        logits = self.audio_logits(hidden[some], target[some])
        audio = F.cross_entropy(logits.flatten(0, 1), target[some][:, 1:].flatten(), reduction="none")
        return text, audio.unflatten(0, (-1, CODEBOOKS)), target[:, 0]


def _initialize(model: Language) -> None:
    """Matrices keep the scale of their input, norms are 1, and the last matrix of a branch starts small."""
    branches = model.config.temporal.layers
    for name, weight in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        with torch.no_grad():
            if isinstance(owner, RMSNorm):
                weight.fill_(1)
            elif isinstance(owner, Linear):
                small = 1 / math.sqrt(2 * branches) if "out_proj" in name or "linear_out" in name else 1
                weight.normal_(0, small / math.sqrt(weight.shape[0]))
            else:
                weight.normal_(0, EMBEDDING_STD)


def train_language(
    model: Language,
    corpus: Corpus,
    steps: int,
    batch: int,
    rate: float,
    minutes: float,
    log: Callable[[dict[str, float]], None],
) -> None:
    """Train for `steps` steps, or fewer so that it ends after `minutes`; the rate falls to nothing over the time used."""
    matrices = [w for name, w in model.named_parameters() if "norm" not in name]
    norms = [w for name, w in model.named_parameters() if "norm" in name]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
    )
    random, begun = np.random.default_rng(0), time.monotonic()
    for step in range(steps + 1):
        done = max(step / steps, (time.monotonic() - begun) / (60 * minutes))
        for group in optimizer.param_groups:
            group["lr"] = (
                rate
                * min(1.0, (step + 1) / (WARM_UP * steps))
                * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
            )
        rows = random.integers(len(corpus.columns), size=batch)
        columns, first = (torch.from_numpy(part[rows]) for part in (corpus.columns, corpus.first))
        text, audio, target = model.losses(columns, first, KEPT)
        weight = torch.where(target == model.config.text_padding, PADDING_WEIGHT, 1.0)
        optimizer.zero_grad()
        ((text * weight).sum() / weight.sum() + audio.mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or done >= 1:
            log(
                {
                    "step": step,
                    "seconds": round(time.monotonic() - begun),
                    "text": text.mean().item(),
                    "audio": audio.mean().item(),
                }
            )
        if done >= 1:
            return


@torch.inference_mode()
def evaluate(model: Language, corpus: Corpus) -> dict[str, float]:
    """Mean losses in nats: text, text of words (no padding), and audio."""
    parts = []
    for start in range(0, len(corpus.columns), 4):
        some = slice(start, start + 4)
        parts.append(model.losses(torch.from_numpy(corpus.columns[some]), torch.from_numpy(corpus.first[some])))
    text, audio, target = (torch.cat(values) for values in zip(*parts, strict=True))
    word = (target != model.config.text_padding) & (target != END_OF_PADDING)
    return {"text": text.mean().item(), "words": text[word].mean().item(), "audio": audio.mean().item()}


def unigram(training: Corpus, held_out: Corpus, config: ModelConfig) -> dict[str, float]:
    """Losses of `held_out` if every token had its frequency in `training`, plus one for each token."""
    seen, asked = (_targets(corpus) for corpus in (training, held_out))  # [n, 1 + 8]
    losses = []
    for k in range(1 + CODEBOOKS):
        counts = np.bincount(seen[:, k], minlength=config.text_card if k == 0 else config.audio_card) + 1.0
        losses.append(-np.log(counts / counts.sum())[asked[:, k]])
    word = (asked[:, 0] != config.text_padding) & (asked[:, 0] != END_OF_PADDING)
    by_codebook = {f"audio codebook {k}": float(loss.mean()) for k, loss in enumerate(losses[1:])}
    text = {"text": float(losses[0].mean()), "text, words only": float(losses[0][word].mean())}
    return {**text, "audio": float(np.mean(losses[1:])), **by_codebook}


def _targets(corpus: Corpus) -> Tokens:
    target = corpus.columns[:, 1:, : 1 + CODEBOOKS]
    counts = (np.arange(1, corpus.columns.shape[1]) >= corpus.first[:, None]) & (target[..., 0] >= 0)
    return target[counts]
