"""Trains the codec's decoder alone, so that a voice activity detector hears its speech and not its silence.

The codes do not change. Spectra alone leave a sound at this bit rate in which silero-vad hears no speech, and the report's
section on turns would have nothing to measure. Called by trained.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from silero_vad import load_silero_vad
from torch import Tensor, nn
from trained_codec import AUDIBLE, Codec, segments, spectral_loss

from pplex.runtime.arrays import Pcm
from pplex.validate.speech.detector import VAD_RATE_HZ

CHUNK = 512  # samples that silero-vad hears at a time
HEARD = 0.5  # weight of its probabilities
FLOOR = 5e-4  # of a spectrum: silence must be silent
TAPS = 24  # of the filter from 24 to 16 kHz, on each side


def train_decoder(
    codec: Codec, sound: Pcm, steps: int, batch: int, frames: int, rate: float, log: Callable[[dict[str, float]], None]
) -> None:
    """Train on segments of `frames` frames of sound [F, 1920]; `log` gets the figures of every 20th step."""
    codec.requires_grad_(False)
    weights = [*codec.decoder.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.8, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    random, loud = np.random.default_rng(1), np.flatnonzero(np.abs(sound).max(1) > AUDIBLE)
    detector = load_silero_vad()
    codec.eval()
    for step in range(steps):
        pcm = torch.from_numpy(segments(sound, loud, batch, frames, random))
        with torch.no_grad():
            expected = speech_logits(detector, pcm.flatten(1)).sigmoid()
        again = codec(pcm)[0].flatten(1)
        spectra = spectral_loss(again, pcm.flatten(1), FLOOR)
        heard = F.binary_cross_entropy_with_logits(speech_logits(detector, again), expected)
        optimizer.zero_grad()
        (spectra + HEARD * heard).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            log({"step": step, "spectra": spectra.item(), "heard": heard.item()})


def speech_logits(detector: Any, pcm: Tensor) -> Tensor:
    """The detector's opinion on every 32 ms of pcm [B, samples] at 24 kHz: [B, n]."""
    detector.reset_states()
    chunks = at_16_khz(pcm).split(CHUNK, 1)
    whole = [detector(chunk, VAD_RATE_HZ) for chunk in chunks if chunk.shape[1] == CHUNK]
    return torch.cat(whole, 1).clamp(1e-5, 1 - 1e-5).logit()


def at_16_khz(pcm: Tensor) -> Tensor:
    """pcm [B, samples] at 24 kHz, resampled by a windowed sinc: twice the rate, low pass, every third sample."""
    doubled = F.pad(pcm[..., None], (0, 1)).flatten(1)  # a zero after each sample
    place = torch.arange(-TAPS, TAPS + 1)
    low = torch.sinc(place / 3) * torch.hann_window(2 * TAPS + 1, periodic=False) * 2 / 3
    return F.conv1d(doubled[:, None], low[None, None], stride=3, padding=TAPS)[:, 0]
