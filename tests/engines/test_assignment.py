"""The forms of a mix: least drift for the bytes, and never more drift with more bytes."""

import random
from itertools import pairwise

import pytest

from pplex.engines.assignment import Costs, predicted, smallest_forms, upgrades
from pplex.engines.choice import Target
from pplex.engines.mixed_choice import MIXED_PRECISION, MixedChoice, Mixing
from pplex.runtime.config import RELEASED
from pplex.runtime.errors import BuildError, GpuError
from pplex.runtime.forms import Forms, offered
from pplex.runtime.gpus import parse_gpu
from pplex.runtime.parameters import parameters, weights_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS

GB = 10**9


def random_costs(seed: int, compiled: bool) -> Costs:
    """Costs that mostly fall with the bits of a form. As in a measurement, some larger forms drift as much."""
    draw = random.Random(seed)
    table, forms = parameters(RELEASED), list(offered(compiled))
    return {
        graph: {
            group.name: {
                form: (draw.lognormvariate(-2 * i, 1), draw.lognormvariate(-2 * i, 1)) for i, form in enumerate(forms)
            }
            for group in table[graph].groups
        }
        for graph in LANGUAGE_GRAPHS
    }


def nbytes(forms: Forms, compiled: bool) -> int:
    return sum(weights_nbytes(RELEASED, MIXED_PRECISION, compiled, forms).values())


def weighted(costs: Costs, forms: Forms, compiled: bool) -> float:
    """The drift that `upgrades` makes least: of both streams, relative to that of the smallest forms."""
    totals = predicted(costs, smallest_forms(RELEASED, compiled))
    return sum(part / total for part, total in zip(predicted(costs, forms), totals, strict=True)) / 2


def mixing(memory: float, compiled: bool = False, **given: object) -> Mixing:
    gpu = parse_gpu("rtx-4090") if compiled else None
    return Mixing(RELEASED, Target("a target", int(memory * GB), gpu), 1, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("compiled", [False, True])
def test_each_upgrade_takes_bytes_and_saves_drift_of_both_streams(compiled: bool) -> None:
    costs = random_costs(1, compiled)
    found = upgrades(RELEASED, costs, compiled)
    each = [found.forms(count) for count in range(len(found.steps) + 1)]
    assert len(each) > 200
    for before, after in pairwise(each):
        assert nbytes(before, compiled) < nbytes(after, compiled)
        pairs = zip(predicted(costs, after), predicted(costs, before), strict=True)
        assert all(less <= more * (1 + 1e-9) for less, more in pairs)  # sums in another order
    assert each[0] == smallest_forms(RELEASED, compiled)


@pytest.mark.parametrize("compiled", [False, True])
def test_no_assignment_of_as_many_bytes_drifts_less(compiled: bool) -> None:
    """Compared with random changes: one group up, others down until the bytes suffice."""
    costs, draw = random_costs(2, compiled), random.Random(3)
    found, names = upgrades(RELEASED, costs, compiled), list(offered(compiled))
    improving = {graph: {group: improving_forms(of, names) for group, of in costs[graph].items()} for graph in costs}
    for count in range(20, len(found.steps), 40):
        best = found.forms(count)
        for _ in range(20):
            other = {graph: dict(groups) for graph, groups in best.items()}
            for _ in range(draw.randint(1, 6)):
                graph = draw.choice(LANGUAGE_GRAPHS)
                group = draw.choice([*other[graph]])
                other[graph][group] = draw.choice(improving[graph][group])
            if nbytes(other, compiled) <= nbytes(best, compiled):
                assert weighted(costs, other, compiled) >= weighted(costs, best, compiled) * (1 - 1e-9)


def improving_forms(of_group: object, names: list[str]) -> list[str]:
    """The forms that are better than each smaller one for text and for audio: only these are offered to a group."""
    kept = names[:1]
    for name in names[1:]:
        if all(new <= old for new, old in zip(of_group[name], of_group[kept[-1]], strict=True)):  # type: ignore[index]
            kept.append(name)
    return kept


def test_more_memory_never_drifts_more_and_what_is_chosen_fits() -> None:
    for compiled, sizes in ((False, range(13, 21)), (True, range(9, 19))):
        costs = random_costs(4, compiled)
        found = [mixing(size, compiled).choose(costs) for size in sizes]
        for size, choice in zip(sizes, found, strict=True):
            assert choice.plan.needed_nbytes(1) <= size * GB
        for less, more in pairwise(found):
            assert all(b <= a * (1 + 1e-9) for a, b in zip(less.drift, more.drift, strict=True))
        assert found[0].drift[1] > 2 * found[-1].drift[1]


def within(text: float, audio: float, costs: Costs) -> MixedChoice:
    return mixing(0, limited=False, budget=(text, audio)).choose(costs)


def test_a_budget_is_kept_and_a_larger_one_never_takes_more_bytes() -> None:
    costs = random_costs(5, compiled=False)
    most = predicted(costs, smallest_forms(RELEASED, compiled=False))
    found = [within(most[0] * share, most[1] * share, costs) for share in (0.05, 0.1, 0.3, 0.6, 1.1)]
    for share, choice in zip((0.05, 0.1, 0.3, 0.6, 1.1), found, strict=True):
        assert choice.drift[0] <= most[0] * share and choice.drift[1] <= most[1] * share
    sizes = [nbytes(choice.forms, compiled=False) for choice in found]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    assert found[-1].forms == smallest_forms(RELEASED, compiled=False)


def test_a_budget_for_one_stream_gives_its_matrices_the_bytes() -> None:
    """Text does not depend on the depth graph, so a strict budget of text and a generous one of audio leave it small."""
    costs = random_costs(6, compiled=False)
    silent = {group: {form: (0.0, cost[1]) for form, cost in of.items()} for group, of in costs["depth"].items()}
    costs = {**costs, "depth": silent}
    most = predicted(costs, smallest_forms(RELEASED, compiled=False))
    choice = within(0.1 * most[0], 2 * most[1], costs)
    assert set(choice.forms["depth"].values()) == {"int4/128"}
    assert set(choice.forms["temporal"].values()) > {"int4/128"}


def test_the_same_costs_give_the_same_forms_in_any_order() -> None:
    costs = random_costs(7, compiled=True)
    turned = {graph: dict(reversed(costs[graph].items())) for graph in reversed(costs)}
    assert mixing(14, True).choose(costs).to_dict() == mixing(14, True).choose(turned).to_dict()


def test_what_cannot_be_is_refused_with_numbers() -> None:
    costs = random_costs(8, compiled=False)
    with pytest.raises(
        BuildError,
        match=r"No mix fits: a target has 8.0 GB. The smallest, with all matrices in int4, needs 11.6 GB for 1 c",
    ):
        mixing(8).checked()
    with pytest.raises(BuildError, match=r"No mix stays within text=1e-09,audio=1: the largest forms drift by text="):
        within(1e-9, 1, costs)
    with pytest.raises(BuildError, match=r"The smallest mix within the budget .* but a target has 5.0 GB"):
        mixing(5, budget=(100.0, 100.0)).choose(costs)
    with pytest.raises(GpuError, match="cannot run temporal=mixed, depth=mixed"):
        Mixing(RELEASED, Target("an old GPU", 11 * GB, parse_gpu("rtx-2080-ti")), 1).checked()
