"""Cells with references of any length; what the tree makes of cells is tested with its pages."""

from __future__ import annotations

import pytest

from conure.storage.cells import SPILLED, make_cell, open_cell, records_of, reference_of
from conure.storage.engine import Record

REF = bytes(12) + b"a.blob"


@pytest.mark.parametrize("expiry", [0, 7])
@pytest.mark.parametrize("mod", [9, 1 << 40])
def test_a_reference_is_what_a_spilled_cell_ends_with(mod: int, expiry: int) -> None:
    cell = make_cell(REF, 5, mod, 2, expiry, spilled=True)
    assert cell[0] & SPILLED
    assert reference_of(cell) == REF
    assert open_cell(cell) == open_cell(cell, len(REF)) == (Record(REF, 5, mod, 2, expiry), True)
    with pytest.raises(ValueError, match="reference"):
        open_cell(cell, len(REF) - 1)
    with pytest.raises(ValueError, match="reference"):
        open_cell(cell[: -len(REF)])
    plain = make_cell(REF, 5, mod, 2, expiry, spilled=False)
    assert reference_of(plain) == reference_of(b"") == b""
    assert open_cell(plain) == (Record(REF, 5, mod, 2, expiry), False)


def test_records_are_read_all_at_once_if_none_has_flags() -> None:
    records = [Record(b"v" * size, size, size + 1, 3, 0) for size in (4, 4, 4)]
    cells = [make_cell(*record, spilled=False) for record in records]
    assert list(records_of(cells) or ()) == records
    records.append(Record(b"longer", 1, 2, 3, 0))
    cells.append(make_cell(*records[-1], spilled=False))
    assert list(records_of(cells) or ()) == records
    for record in (Record(b"v", 1, 2, 3, 4), Record(b"v", 1, 1 << 33, 3, 0)):
        assert records_of([*cells, make_cell(*record, spilled=False)]) is None
        assert records_of([make_cell(*record, spilled=False)]) is None
