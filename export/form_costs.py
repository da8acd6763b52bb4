"""Computes what each form of a matrix costs in drift, from the uses of the matrix: called by `export.sensitivity`.

A matrix W [K, N] is rounded to W + E. Its output errs by E' x in each step, and the gradient g of a probe turns this into
the divergence of the tokens: half the mean square of the sum of g E' x over all steps (see `export.probing`). Errors of
different columns are nearly independent, so their squares are added; within a column, the errors of all steps are summed
first, because they are alike. The cost is that in the conversation where it is largest.

ONNX Runtime's kernel on a processor also rounds the input x of a quantized matrix, to 8 bits in the matrix's blocks. That
drift is added to the costs for processors.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from pplex.engines.assignment import Cost
from pplex.export import weights
from pplex.export.awq import Fold, Folding, layers
from pplex.export.calibration import Calibration
from pplex.export.exporter import rounded
from pplex.export.moments import Moments
from pplex.export.probing import STREAMS, Counts, Probed, Use
from pplex.export.storage import IR_TYPES, Storage, stored_as
from pplex.export.threads import in_threads
from pplex.runtime.config import ModelConfig
from pplex.runtime.forms import FOR_ENGINES, FOR_PROCESSORS, FORMS, Form

KINDS = ("processors", "engines")
SMALLEST_FUSED_BLOCK = 16  # of ONNX Runtime's kernel on a processor; it widens other weights
_FOLDED = "int4/32"  # whose AWQ factors stand for those of a mix: they differ little between forms
_COLUMNS = 256  # of each matrix: as many of the heaviest, and of the others


class Rounding:
    """Rounds the matrices of one graph to every form, as an export does."""

    def __init__(self, graph: str, config: ModelConfig, calibration: Calibration):
        self._graph, self._calibration = graph, calibration
        self._layers = layers(graph, config)
        shapes = {
            name: (parameter.shape[0], parameter.shape[1])
            for name, parameter in weights.parameters(graph, config).items()
            if name.endswith(".weight") and parameter.dim() == 2
        }
        self._stored: dict[str, dict[str, Storage]] = {
            name: {matrix: stored_as(form, shape) for matrix, shape in shapes.items()}
            for name, form in FORMS.items()
            if form.dtype in IR_TYPES
        }

    def costs(self, part: Probed, counts: Sequence[Counts]) -> dict[str, dict[str, dict[str, Cost]]]:
        """The cost of each form, by matrix and kind of graph."""
        folding = Folding(self._graph, part.matrices.__getitem__, self._calibration, self._stored[_FOLDED])
        found = in_threads(folding.layer, [self._layers[i] for i in part.layers])
        factors = {name: fold for layer in found for name, fold in layer.items()}

        def of(name: str) -> dict[str, dict[str, Cost]]:
            return self._of_matrix(name, part.matrices[name], part.uses[name], factors.get(name, Fold()), counts)

        return dict(zip(part.matrices, in_threads(of, part.matrices), strict=True))

    def _of_matrix(
        self, name: str, weight: Tensor, uses: Sequence[Use], fold: Fold, counts: Sequence[Counts]
    ) -> dict[str, dict[str, Cost]]:
        columns, scale = _columns(weight, uses)
        exact = weight[:, columns].float()
        products = [  # inputs and gradients, summed over a conversation's steps, [K, n]
            {stream: use.inputs.T @ gradient[:, columns] for stream, gradient in use.of_outputs.items()} for use in uses
        ]
        result: dict[str, dict[str, Cost]] = {kind: {} for kind in KINDS}
        moments = self._calibration.moments(self._graph, name)
        moments = moments if fold.rows is None else moments.divided(fold.rows)
        own = Fold(fold.rows, None if fold.columns is None else fold.columns[columns])
        for form in FORMS.values():
            error = self._as_stored(name, form, exact, own, moments) - exact
            drifts = [
                {
                    stream: float(((error * product).sum(0).square() * scale).sum()) / 2
                    for stream, product in found.items()
                }
                for found in products
            ]
            costs = [_a_step(drift, count) for drift, count in zip(drifts, counts, strict=True)]
            if form.name in FOR_ENGINES:
                result[KINDS[True]][form.name] = _largest(costs)
            if form.name in FOR_PROCESSORS:
                block = form.block_of(len(weight))
                kernel = [_kernel_cost(use, block, fold, count) for use, count in zip(uses, counts, strict=True)]
                result[KINDS[False]][form.name] = _largest(map(added, costs, kernel))
        return result

    def _as_stored(self, name: str, form: Form, exact: Tensor, fold: Fold, moments: Moments) -> Tensor:
        """Some columns of a matrix, rounded, without the factors that are folded into them. moments: of the folded input."""
        if form.dtype not in IR_TYPES:
            return exact.to(getattr(torch, form.dtype)).float()
        signed = form.name in FOR_PROCESSORS
        stored = rounded(fold(exact).contiguous(), self._stored[form.name][name], moments, signed).dequantized()
        return Fold(*(None if factors is None else 1 / factors for factors in (fold.rows, fold.columns)))(stored)


def _kernel_cost(use: Use, block: int, fold: Fold, count: Counts) -> Cost:
    """The drift from rounding the inputs to 8 bits, in blocks of `block`: each error times the gradient at its place."""
    if block < SMALLEST_FUSED_BLOCK:
        return 0.0, 0.0
    factors = torch.ones(use.inputs.shape[1]) if fold.rows is None else fold.rows
    x = (use.inputs / factors).unflatten(1, (-1, block))
    step = x.abs().amax(2, keepdim=True).clamp(min=1e-12) / 127
    error = ((x / step).round() * step - x).flatten(1) * factors
    return _a_step({name: float((error * g).square().sum()) / 2 for name, g in use.of_inputs.items()}, count)


def _a_step(drift: Mapping[str, float], count: Counts) -> Cost:
    """The mean over a conversation's distributions; a matrix of the depth graph changes no text."""
    return drift.get("text", 0.0) / count.text, drift.get("audio", 0.0) / count.audio


def _largest(costs: Iterable[Cost]) -> Cost:
    text, audio = zip(*costs, strict=True)
    return max(text), max(audio)


def _columns(weight: Tensor, uses: Sequence[Use]) -> tuple[Tensor, Tensor]:
    """The columns to round, and how many columns each of them stands for.

    The heaviest are taken all: those with large weights, and large gradients. Of the others, as many are spread over the
    matrix.
    """
    count = weight.shape[1]
    if count <= 2 * _COLUMNS:
        return torch.arange(count), torch.ones(count)
    energy = torch.zeros(count)
    for stream in STREAMS:
        found = [use.of_outputs[stream].square().sum(0) for use in uses if stream in use.of_outputs]
        if found:
            total = torch.stack(found).sum(0)
            energy += total / total.sum().clamp(min=1e-30)
    order = (energy * weight.abs().amax(0).float().square()).argsort(descending=True, stable=True)
    rest = order[_COLUMNS:].sort().values
    spread = rest[torch.linspace(0, len(rest) - 1, _COLUMNS).round().long()]
    columns = torch.cat([order[:_COLUMNS], spread])
    return columns, torch.cat([torch.ones(_COLUMNS), torch.full((_COLUMNS,), len(rest) / _COLUMNS)])


def added(a: Cost, b: Cost) -> Cost:
    return a[0] + b[0], a[1] + b[1]
