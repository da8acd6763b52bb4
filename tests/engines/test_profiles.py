"""Which calls each profile of an engine allows."""

import pytest

from pplex.engines.profiles import profiles
from pplex.runtime.config import RELEASED
from pplex.runtime.graphs import graph_specs

SPECS = graph_specs(RELEASED)


@pytest.mark.parametrize("slots, fixed", [(1, []), (2, [2]), (6, [2, 4, 6]), (8, [2, 4, 8])])
def test_usual_batch_sizes_have_a_profile_of_their_own(slots: int, fixed: list[int]) -> None:
    batches = [shapes["codes"] for shapes in profiles(SPECS["temporal"], 3000, slots)]
    any_batch, priming, *others = [(smallest[:2], largest[:2]) for smallest, _, largest in batches]
    assert any_batch == ((1, 1), (max(slots, 2), 1)) and priming == ((1, 2), (2, 256))
    assert others == [((batch, 1), (batch, 1)) for batch in fixed]


def test_a_graph_without_rings_needs_one_profile() -> None:
    (shapes,) = profiles(SPECS["depth"], 3000, 8)
    assert shapes["hidden"][0][0] == 1 and shapes["hidden"][2][0] == 8


def test_rings_have_their_full_length_in_every_profile() -> None:
    for shapes in profiles(SPECS["temporal"], 3000, 8):
        assert {end[2] for end in shapes["past.k.0"]} == {3000}
