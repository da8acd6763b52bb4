"""Trains a small codec: streaming encoder and decoder, and residual codebooks as running means. Called by trained.py."""

import math
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplex.export import mimi
from pplex.export.layers import Linear
from pplex.export.mimi import Carry, MimiDecoder, MimiEncoder
from pplex.runtime.arrays import Pcm, Rows
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.runtime.graphs import StateSpec, graph_specs

LIVE = 128  # entries of each codebook that are ever chosen
DECAY = 0.97  # of an entry's running mean
UNUSED = 0.3  # usage below which an entry is drawn again
COMMITMENT = 0.5
WINDOWS = (256, 512, 1024, 2048)  # samples of the spectra
FLOOR = 3e-3  # of a spectrum, relative to the window's length
LINEAR = 3.0  # weight of the plain spectra
BRANCH = 0.1  # scale of the transformer's branches at first
SPOKEN, AUDIBLE = 0.85, 0.05  # share of segments with speech, and the peak of a frame of speech


class Books(nn.Module):
    """The live entries of all codebooks, as running means: total [8, LIVE, dim], usage [8, LIVE]."""

    total: Tensor
    usage: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("total", torch.randn(CODEBOOKS, LIVE, dim))
        self.register_buffer("usage", torch.ones(CODEBOOKS, LIVE))

    @property
    def entries(self) -> Tensor:
        return self.total / self.usage.clamp(min=1e-5)[..., None]

    def quantize(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest entries of a codebook for x [N, dim], and their numbers [N]; while training, the book follows x."""
        codes = torch.cdist(x.detach(), self.entries[index]).argmin(1)
        if self.training:
            self._follow(index, x.detach(), codes)
        return self.entries[index][codes], codes

    def _follow(self, index: int, x: Tensor, codes: Tensor) -> None:
        chosen = F.one_hot(codes, LIVE).float()
        self.total[index].lerp_(chosen.t() @ x, 1 - DECAY)
        self.usage[index].lerp_(chosen.sum(0), 1 - DECAY)
        lost = self.usage[index] < UNUSED
        if lost.any():
            self.total[index][lost] = x[torch.randint(len(x), (int(lost.sum()),))]
            self.usage[index][lost] = 1.0


class Codec(nn.Module):
    """Encoder, codebooks and decoder, for segments of up to half the codec's context in frames."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder, self.books = (
            MimiEncoder(config),
            MimiDecoder(config),
            Books(config.mimi.codebook_dim),
        )
        for side in (self.encoder, self.decoder):
            side.quantizer.codebooks = nn.ParameterList()
        _initialize(self)

    def forward(self, pcm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pcm [B, F, 1920] -> its reconstruction [B, F, 1920], the commitment loss, and codes [B, F, 8]."""
        # torch's own ELU is the same function; the gradient of the exported form takes three times as long.
        with patch.object(mimi, "elu", F.elu):
            latent = self.latent(pcm)  # [B, F, dim]
            quantized, loss, codes = self.quantized(latent.flatten(0, 1))
            return self.sound(quantized.unflatten(0, pcm.shape[:2])), loss, codes.unflatten(0, pcm.shape[:2])

    def latent(self, pcm: Tensor) -> Tensor:
        part, (carry, rings) = self.encoder, self._fresh("mimi_encode", len(pcm))
        x = part.seanet(pcm.flatten(1)[:, None], carry)
        x, _ = part.transformer(x, carry.past["position"], rings)
        return part.downsample(x, carry).transpose(1, 2)

    def quantized(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder's input [N, dim] for latents [N, dim], the commitment loss, and codes [N, 8].

        The gradient passes the codebooks as if they were exact: once for the semantic part, once for all acoustic ones.
        """
        given, made = self.encoder.quantizer, self.decoder.quantizer
        semantic, acoustic = given.semantic(latent), given.acoustic(latent)
        entries, losses, codes, rest = list[Tensor](), list[Tensor](), list[Tensor](), semantic
        for index in range(CODEBOOKS):
            rest = acoustic if index == 1 else rest
            entry, code = self.books.quantize(index, rest)
            losses.append(F.mse_loss(rest, entry))
            entries.append(entry)
            codes.append(code)
            rest = rest - entry
        exact = [semantic + (entries[0] - semantic).detach(), acoustic + (sum(entries[1:]) - acoustic).detach()]
        return made.semantic(exact[0]) + made.acoustic(exact[1]), torch.stack(losses).mean(), torch.stack(codes, 1)

    def sound(self, quantized: Tensor) -> Tensor:
        part, (carry, rings) = self.decoder, self._fresh("mimi_decode", len(quantized))
        x = part.upsample(quantized.transpose(1, 2), carry)
        x, _ = part.transformer(x, carry.past["position"], rings)
        return part.seanet(x, carry)[:, 0].unflatten(-1, (-1, self.config.frame_size))

    def _fresh(self, graph: str, slots: int) -> tuple[Carry, tuple[Tensor, ...]]:
        """The state before the first frame."""
        spec = graph_specs(self.config)[graph].state
        zeros = [_zeros(state, slots) for state in spec]
        keys = [state.name for state in spec if not state.ring]
        carry = Carry(dict(zip(keys, zeros[: len(keys)], strict=True)), torch.ones(slots, dtype=torch.bool))
        return carry, tuple(zeros[len(keys) :])


def _zeros(state: StateSpec, slots: int) -> Tensor:
    return torch.zeros([slots if size == "B" else int(size) for size in state.shape], dtype=getattr(torch, state.dtype))


def _initialize(codec: Codec) -> None:
    """Matrices and filters keep the scale of their input; norms are 1, biases 0, and branches start small."""
    for name, weight in codec.named_parameters():
        owner = codec.get_submodule(name.rpartition(".")[0])
        with torch.no_grad():
            if isinstance(owner, Linear):
                weight.normal_(0, 1 / math.sqrt(weight.shape[0]))
            elif weight.dim() == 3:
                inputs = (
                    2 * weight.shape[0] if "resample" in name and "decoder" in name else math.prod(weight.shape[1:])
                )
                weight.normal_(0, 1 / math.sqrt(2 if "upsample" in name else inputs))
            else:
                weight.fill_(BRANCH if "scale" in name else float("norm" in name and name.endswith("weight")))


def train_codec(
    codec: Codec,
    sound: Pcm,
    steps: int,
    schedule: int,
    batch: int,
    frames: int,
    rate: float,
    log: Callable[[dict[str, float]], None],
) -> None:
    """Train on segments of `frames` frames of sound [F, 1920]; `log` gets the figures of every 50th step.

    The rate follows a schedule of `schedule` steps, of which the first `steps` are made.
    """
    optimizer = torch.optim.AdamW(codec.parameters(), lr=rate, betas=(0.8, 0.99), weight_decay=1e-3)
    falling = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=schedule, pct_start=0.05)
    random, loud = np.random.default_rng(0), np.flatnonzero(np.abs(sound).max(1) > AUDIBLE)
    codec.train()
    for step in range(steps):
        pcm = torch.from_numpy(segments(sound, loud, batch, frames, random))
        again, commitment, codes = codec(pcm)
        spectra = spectral_loss(again.flatten(1), pcm.flatten(1))
        optimizer.zero_grad()
        (spectra + COMMITMENT * commitment).backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        falling.step()
        if step % 50 == 0 or step == steps - 1:
            bits = [entropy_bits(codes[..., k].flatten().numpy()) for k in range(CODEBOOKS)]
            log(
                {"step": step, "spectra": spectra.item(), "commitment": commitment.item(), "bits": float(np.mean(bits))}
            )
    codec.eval()


def segments(sound: Pcm, loud: Rows, batch: int, frames: int, random: np.random.Generator) -> Pcm:
    """Segments [batch, frames, 1920] of sound [F, 1920]; SPOKEN of them begin near one of the `loud` frames."""
    starts = random.integers(len(sound), size=batch)
    near = random.choice(loud, batch) - random.integers(frames, size=batch)
    starts = np.where(random.random(batch) < SPOKEN, near, starts).clip(0, len(sound) - frames)
    segments = np.stack([sound[start : start + frames] for start in starts])
    scaled: Pcm = segments * random.uniform(0.3, 1.2, (batch, 1, 1)).astype(np.float32)
    return scaled


def spectral_loss(got: Tensor, expected: Tensor, floor: float = FLOOR) -> Tensor:
    """Mean difference of the logarithmic spectra of sound [B, samples] at several resolutions, plus that of the spectra."""
    losses = []
    for size in WINDOWS:
        window = torch.hann_window(size)
        a, b = (
            torch.stft(x, size, size // 4, window=window, return_complex=True).abs() / size**0.5
            for x in (got, expected)
        )
        losses.append((torch.log(a + floor) - torch.log(b + floor)).abs().mean() + LINEAR * (a - b).abs().mean())
    return torch.stack(losses).mean()


def entropy_bits(codes: np.ndarray) -> float:
    """Entropy of codes [N] in bits."""
    share = np.bincount(codes.reshape(-1)) / codes.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())
