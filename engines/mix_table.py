"""The table of a mixed precision: the bytes of each form, and which matrices have it. Called by `engines.bundle_report`."""

import re
from collections.abc import Iterator, Mapping, Sequence

from pplex.measure.tables import markdown, readable
from pplex.runtime.config import ModelConfig
from pplex.runtime.forms import FORMS, Forms
from pplex.runtime.parameters import Group, parameters
from pplex.runtime.precision import MIXED

_HEADERS = ("form", "bytes", "matrices")
_NUMBERED = re.compile(r"(layers|steps)\.(\d+)\.(?:attention\.|gating\.)?(\w+)")


def mix_table(config: ModelConfig, forms: Forms) -> str:
    """A Markdown table with a row for each graph and form. The most common form of a graph has "all others"."""
    table = parameters(config)
    rows = [row for graph, groups in forms.items() for row in _rows(graph, table[graph].groups, groups)]
    return markdown(_HEADERS, rows)


def _rows(graph: str, groups: Sequence[Group], given: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(given[group.name], []).append(group)
    most = max(found, key=lambda form: len(found[form]))
    for form in (form for form in FORMS if form in found):
        nbytes = sum(group.nbytes(FORMS[form], MIXED.activations) for group in found[form])
        which = "all others" if form == most and len(found) > 1 else _listed([group.name for group in found[form]])
        yield f"{graph} {form}", readable(nbytes), which


def _listed(names: Sequence[str]) -> str:
    """Names of groups in short, as in: linear_out of layers 0-2, 7; text_linear."""
    numbers: dict[tuple[str, str], list[int]] = {}
    parts = []
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            numbers.setdefault((match[3], match[1]), []).append(int(match[2]))
        else:
            parts.append(name)
    return "; ".join([*(f"{kind} of {where} {_ranges(found)}" for (kind, where), found in numbers.items()), *parts])


def _ranges(numbers: Sequence[int]) -> str:
    """As in: 0-2, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
