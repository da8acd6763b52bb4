"""The distance of a latent from the boundary between two codebook entries: distinguishes near ties from wrong codes.

Called by `validate.parting` and the sections.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pplex.export.mimi import Quantizer
from pplex.runtime.arrays import Floats, Tokens
from pplex.runtime.config import CODEBOOKS

Flags = npt.NDArray[np.bool_]

# The two quantizers' codebooks: semantic, acoustic. A codebook quantizes the residual of the codebook before it.
QUANTIZERS = (range(1), range(1, CODEBOOKS))


@dataclass(frozen=True)
class ComparedCodes:
    """Codes [F, 8] compared with the reference's.

    differs: the code is not the reference's.
    follows: an earlier code of the same frame and quantizer differs, so this code quantized another residual.
    distance: see `boundary_distances`.
    unexplained: the distance is larger than rounding explains.
    lost: it follows an unexplained code and cannot be judged.
    """

    differs: Flags
    follows: Flags
    distance: Floats
    unexplained: Flags
    lost: Flags

    @property
    def explained(self) -> Flags:
        """The first different code of a frame and quantizer, if rounding explains it."""
        return self.differs & ~self.follows & ~self.unexplained

    @property
    def largest(self) -> Floats:
        """The largest distance of a code that can be judged, for each codebook: [8]."""
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
    """The distance by which latents [F, dim] must move until each of the codes [F, 8] is the nearest entry: [F, 8].

    It is 0 for the nearest entry, and infinite for a code outside the codebook. The boundary between entries e and n is the
    plane halfway between them, and x is (|x - e|^2 - |x - n|^2) / (2 |e - n|) away from it. x is the residual after the
    earlier entries of the same codes, so each code is judged by its own input. The unit is the root mean square length of
    the projected latents. So an engine's relative latent error is at least the largest distance.
    """
    distances = np.empty(codes.shape)
    for books, project in zip(QUANTIZERS, (quantizer.semantic, quantizer.acoustic), strict=True):
        x = project(latents).double().numpy()  # [F, codebook_dim]
        unit = float(np.sqrt((x**2).sum(axis=1).mean())) or 1.0
        for i in books:
            book = quantizer.codebooks[i].double().numpy()
            entry = codes[:, i].clip(0, len(book) - 1)
            distances[:, i] = np.where(entry == codes[:, i], _boundary_distance(x, book, entry) / unit, np.inf)
            x = x - book[entry]
    return distances


def _boundary_distance(x: Floats, book: Floats, entry: Tokens) -> Floats:
    """Distance [F] of x [F, D] from the boundary between its nearest entry and `entry` [F] of book [N, D]."""
    score = (book**2).sum(axis=1) - 2 * x @ book.T  # [F, N] |x - e|^2 without |x|^2
    nearest, frame = score.argmin(axis=1), np.arange(len(x))
    excess = score[frame, entry] - score[frame, nearest]
    gap = np.linalg.norm(book[entry] - book[nearest], axis=1)
    return np.divide(excess, 2 * gap, out=np.zeros(len(x)), where=gap > 0)


def _after_one(flags: Flags) -> Flags:
    """Flags the codes after a flagged code of the same frame and quantizer."""
    after = np.zeros_like(flags)
    for books in QUANTIZERS:
        after[:, books[1:]] = np.logical_or.accumulate(flags[:, books], axis=1)[:, :-1]
    return after
