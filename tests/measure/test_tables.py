"""Tables line up, whatever their cells hold."""

from hypothesis import given
from hypothesis import strategies as st

from pplex.measure.tables import aligned, markdown, readable

CELLS = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1))
def test_columns_begin_or_end_at_the_same_place(rows: list[tuple[str, str, str]]) -> None:
    lines = aligned(rows, right=(1,), indent="  ").splitlines()
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    for line, row in zip(lines, rows, strict=True):
        assert line[2:].startswith(row[0])
        assert line[: 2 + first + 2 + second].endswith(row[1])
        assert line[2 + first + 2 + second + 2 :] == row[2]


def test_numbers_are_shown_as_they_were_written() -> None:
    assert aligned([("1e5", "0.10"), ("x", "007")]) == "1e5  0.10\nx    007"


def test_markdown_has_a_row_of_dashes_below_its_headers() -> None:
    head, dashes, row = markdown(("GPU", "slots"), [("RTX 4090", "4 / 8")]).splitlines()
    assert head.startswith("| GPU") and set(dashes) == {"|", "-", " "} and row.startswith("| RTX 4090 | 4 / 8")
    assert len(head) == len(dashes) == len(row)


def test_sizes_are_in_powers_of_ten() -> None:
    assert [readable(nbytes) for nbytes in (98_000, 8_300_000, 15_700_000_000)] == ["98 kB", "8.3 MB", "15.7 GB"]
