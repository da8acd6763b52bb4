"""What explains a code that is not the reference's: how near the latent is to the boundary between the two entries."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pplex.export.mimi import Quantizer
from pplex.runtime.arrays import Floats, Tokens
from pplex.runtime.config import CODEBOOKS

Flags = npt.NDArray[np.bool_]

HALVES = (range(1), range(1, CODEBOOKS))  # semantic and acoustic: in each, a codebook quantizes what the last one left


@dataclass(frozen=True)
class ComparedCodes:
    """Codes [F, 8] beside the reference's.

    `differs`: is not the reference's. `follows`: differs after another code of its frame and half, so that it quantized
    something else. `distance`: see `boundary_distances`. `unexplained`: that is more than rounding explains. `lost`: comes
    after an unexplained one, and says nothing.
    """

    differs: Flags
    follows: Flags
    distance: Floats
    unexplained: Flags
    lost: Flags

    @property
    def explained(self) -> Flags:
        """Differs where it is the first to, and rounding explains it."""
        return self.differs & ~self.follows & ~self.unexplained

    @property
    def largest(self) -> Floats:
        """Per codebook, the largest distance of a code that says something: [8]."""
        return np.where(self.lost, 0, self.distance).max(axis=0)


def compare_codes(
    quantizer: Quantizer, latents: Tensor, got: Tokens, expected: Tokens, explained: float
) -> ComparedCodes:
    """Codes `got` [F, 8] for the reference's latents [F, dim] and codes; a distance up to `explained` is rounding."""
    differs, distance = got != expected, boundary_distances(quantizer, latents, got)
    beyond = distance > explained
    lost = _after_one(beyond)
    return ComparedCodes(differs, differs & _after_one(differs), distance, beyond & ~lost, lost)


@torch.inference_mode()
def boundary_distances(quantizer: Quantizer, latents: Tensor, codes: Tokens) -> Floats:
    """How far latents [F, dim] would have to move for the codes [F, 8] to be those of the nearest entries: [F, 8].

    0 where they are. An entry e is nearer to x than n is on one side of the plane halfway between them, from which x is
    (|x - e|^2 - |x - n|^2) / (2 |e - n|) away. x is what the earlier entries of the same codes leave, so a code is judged
    by what it did quantize. In root mean square lengths of the projected latents: the error of an engine's latent is a share
    of them, and is the same for what is left of it; it is at least as large as the largest distance. Infinite for a code
    that no entry has.
    """
    distances = np.empty(codes.shape)
    for half, project in zip(HALVES, (quantizer.semantic, quantizer.acoustic), strict=True):
        x = project(latents).double().numpy()  # [F, codebook_dim]
        unit = float(np.sqrt((x**2).sum(axis=1).mean())) or 1.0
        for i in half:
            book = quantizer.codebooks[i].double().numpy()
            entry = codes[:, i].clip(0, len(book) - 1)
            distances[:, i] = np.where(entry == codes[:, i], _boundary_distance(x, book, entry) / unit, np.inf)
            x = x - book[entry]
    return distances


def _boundary_distance(x: Floats, book: Floats, entry: Tokens) -> Floats:
    """Of x [F, D] from the boundary between its nearest entry and `entry` [F] of book [N, D]: [F]."""
    score = (book**2).sum(axis=1) - 2 * x @ book.T  # [F, N] |x - e|^2 without |x|^2
    nearest, frame = score.argmin(axis=1), np.arange(len(x))
    excess = score[frame, entry] - score[frame, nearest]
    gap = np.linalg.norm(book[entry] - book[nearest], axis=1)
    return np.divide(excess, 2 * gap, out=np.zeros(len(x)), where=gap > 0)


def _after_one(flags: Flags) -> Flags:
    """Where an earlier codebook of the same frame and half is flagged."""
    after = np.zeros_like(flags)
    for half in HALVES:
        after[:, half[1:]] = np.logical_or.accumulate(flags[:, half], axis=1)[:, :-1]
    return after
