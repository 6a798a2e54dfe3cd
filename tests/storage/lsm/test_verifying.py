"""Every lie about a result that there is a way to tell."""

from __future__ import annotations

import pytest

from conure.errors import DiskFailed, JobLost
from conure.storage.lsm.blobs import BlobFacts
from conure.storage.lsm.jobs import (
    FILES_PER_JOB,
    Feed,
    FlushJob,
    Job,
    JobResult,
    MergeJob,
    flush,
    merge,
)
from conure.storage.lsm.tables import TOMBSTONE, Table, TableFacts
from conure.storage.lsm.tablewriter import TableWriter
from conure.storage.lsm.verifying import prove
from tests.lab.crashfs import CrashFileSystem
from tests.storage.lsm.jobtools import (
    FOLDER,
    LIMITS,
    STEM,
    cell,
    chunks,
    end,
    fed,
    flushed,
    merge_of,
    number,
)

ITEMS = {b"%03d" % key: cell(b"v" * (key % 5 * 80)) for key in range(60)}
GONE = {b"%03d" % key: TOMBSTONE for key in range(10, 20)}


class Case:
    """A job that is done, and what may be said of it."""

    def __init__(self, kind: str) -> None:
        self.fs = CrashFileSystem()
        self.fs.make_directory(FOLDER)
        self.feed: Feed | None = None
        self.job: Job
        if kind == "flush":
            self.job = FlushJob(STEM, number(), LIMITS)
            self.result = end(flush(self.fs, FOLDER, self.job, chunks(ITEMS | GONE)))
            self.feed = fed(ITEMS | GONE)
        else:
            old, new = flushed(self.fs, ITEMS), flushed(self.fs, GONE)
            self.job = merge_of(
                [new.tables, old.tables], older=((b"015", b"016"),), emptied=old.blobs[:1]
            )
            self.result = end(merge(self.fs, FOLDER, self.job))
        assert len(self.result.tables) > 1
        assert self.result.blobs

    def lie(self, result: JobResult, why: str) -> None:
        with pytest.raises(JobLost, match=why) as lost:
            end(prove(self.fs, FOLDER, self.job, result, self.feed))
        assert "restore" not in str(lost.value)  # that is for damage, and this is done again

    def with_table(self, at: int, **changes: object) -> JobResult:
        tables = list(self.result.tables)
        tables[at] = tables[at]._replace(**changes)  # type: ignore[arg-type]
        return self.result._replace(tables=tuple(tables))

    def written(self, items: dict[bytes, bytes], at: int) -> TableFacts:
        """Write another table over the one at that place of the result."""
        name = self.result.tables[at].name
        self.fs.remove(f"{FOLDER}/{name}")
        writer = TableWriter(self.fs, FOLDER, name)
        writer.add(sorted(items), [items[key] for key in sorted(items)])
        end_of = writer.finish()
        for _ in end_of:
            pass
        return writer.facts


@pytest.fixture(params=["flush", "merge"], name="case")
def _case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_the_truth_is_believed_and_handed_over_open(case: Case) -> None:
    proved = end(prove(case.fs, FOLDER, case.job, case.result, case.feed))
    assert tuple(table.facts for table in proved.tables) == case.result.tables
    assert tuple(blob.facts for blob in proved.blobs) == case.result.blobs


def test_no_byte_of_a_file_may_differ(case: Case) -> None:
    for file in (case.result.tables[0], case.result.tables[-1], case.result.blobs[0]):
        path = f"{FOLDER}/{file.name}"
        for at in range(0, len(case.fs.contents(path)), 3):
            case.fs.corrupt(path, at, 0x40)
            case.lie(case.result, path)
            case.fs.corrupt(path, at, 0x40)


@pytest.mark.parametrize("at", [0, -1])
def test_a_file_that_is_cut_grown_or_missing(case: Case, at: int) -> None:
    names = [table.name for table in case.result.tables]
    names += [blob.name for blob in case.result.blobs]
    path = f"{FOLDER}/{names[at]}"
    size = len(case.fs.contents(path))
    opened = case.fs.open(path)
    opened.pwrite(b"more", size)
    case.lie(case.result, path)
    opened.truncate(size - 1)
    case.lie(case.result, path)
    opened.truncate(0)
    case.lie(case.result, path)
    case.fs.remove(path)
    case.lie(case.result, path)


def test_a_stale_file_of_the_same_name(case: Case) -> None:
    """An earlier run of the same job, say, of other content and the same sizes."""
    facts = case.result.tables[0]
    swapped = case.written({facts.first: cell(b"w"), facts.last: cell(b"w")}, 0)
    case.lie(case.result, facts.name)
    assert swapped != facts


def test_a_footer_of_another_table(case: Case) -> None:
    first, second = case.result.tables[:2]
    case.lie(case.with_table(0, footer=second.footer), first.name)
    case.lie(case.with_table(0, size=second.size, footer=second.footer), first.name)


def test_tables_out_of_order_or_overlapping(case: Case) -> None:
    tables = case.result.tables
    case.lie(case.result._replace(tables=tables[::-1]), "out of order")
    case.lie(case.with_table(0, last=tables[1].first), "out of order")
    case.lie(case.with_table(0, first=b"\xff", last=b"\xfe"), "out of order")
    case.lie(case.with_table(0, first=b""), "out of order")


def test_keys_that_did_not_go_in(case: Case) -> None:
    case.lie(case.with_table(0, first=b"!"), "did not go in")
    case.lie(case.with_table(-1, last=b"zz"), "did not go in")
    table = case.result.tables[0]
    fake = case.written({b"!": cell(b"w"), **dict.fromkeys([table.last], cell(b"w"))}, 0)
    case.lie(case.with_table(0, **fake._asdict()), "did not go in")


def test_first_and_last_key_are_those_of_the_file(case: Case) -> None:
    name = case.result.tables[0].name
    case.lie(case.with_table(0, first=case.result.tables[0].first + b"0"), name)


def test_counts_that_do_not_add_up(case: Case) -> None:
    result, records = case.result, case.result.tables[0].records
    case.lie(result._replace(read=result.read + 1), "it read")
    case.lie(result._replace(superseded=result.superseded + 1), "it read")
    case.lie(result._replace(dropped=-1), "it read")
    case.lie(case.with_table(0, records=records + 1), "it read")
    # That adds up, and isn't true.
    case.lie(
        case.with_table(0, records=records + 1)._replace(superseded=result.superseded - 1),
        "it read|footer",
    )
    case.lie(result._replace(read=result.read + 1, dropped=result.dropped + 1), "of")


def test_records_that_are_missing(case: Case) -> None:
    """A table is left out, and its records are said to be superseded or dropped."""
    result = case.result
    left_out = result.tables[1]
    tables = (result.tables[0], *result.tables[2:])
    lost = left_out.records
    less = result._replace(tables=tables)
    case.lie(less, "it read")
    case.lie(less._replace(read=less.read - lost), "records of|it read")
    case.lie(less._replace(superseded=result.superseded + lost), "too many|tombstones")
    case.lie(less._replace(dropped=result.dropped + lost), "too many|tombstones")


def test_no_tables_at_all(case: Case) -> None:
    case.lie(JobResult((), (), case.result.read, 0, 0), "it read")
    case.lie(JobResult((), (), 0, 0, 0), "records of|tombstones of")


def test_a_flush_that_lost_its_tombstones() -> None:
    case = Case("flush")
    for at, table in enumerate(case.result.tables):
        if table.tombstones:
            case.lie(case.with_table(at, tombstones=0), "tombstones")


def test_names_of_another_job_or_place(case: Case) -> None:
    beyond = f"{STEM}-{case.job.number + FILES_PER_JOB}.sst"
    for name in ("../identity.json", "x.sst", beyond, case.result.tables[0].name + "/../x.sst"):
        case.lie(case.with_table(0, name=name), "name of its own")
    case.lie(case.with_table(0, name=case.result.blobs[0].name), "twice")
    case.lie(case.with_table(0, name=case.result.tables[1].name), "twice")
    blob = BlobFacts(f"{STEM}-{case.job.number + 99}.sst", 50)
    case.lie(case.result._replace(blobs=(blob,)), "name of its own")


def test_references_to_nowhere(case: Case) -> None:
    case.lie(case.result._replace(blobs=()), "refers to bytes")
    at = next(at for at, table in enumerate(case.result.tables) if table.blobs)
    table = case.result.tables[at]
    more = tuple((name, size + 5000) for name, size in table.blobs)
    case.lie(case.with_table(at, blobs=more), "refers to bytes")
    case.lie(case.with_table(at, blobs=(*table.blobs, ("conure.db-0-1.blob", 1))), "refers to")
    case.lie(case.with_table(at, blobs=()), table.name)


def test_a_merge_may_not_refer_to_what_it_empties() -> None:
    case = Case("merge")
    assert isinstance(case.job, MergeJob)
    (emptied,) = case.job.emptied
    old = next(t for run in case.job.inputs for t in run if emptied.name in dict(t.blobs))
    at = next(at for at, table in enumerate(case.result.tables) if table.blobs)
    case.lie(case.with_table(at, blobs=old.blobs), "refers to bytes")


def test_a_reference_to_another_keys_value() -> None:
    """The files are whole, and so are the counts."""
    case = Case("flush")
    ((keys, cells),) = Table.open(case.fs, FOLDER, case.result.tables[0]).groups(b"", None, False)
    items = dict(zip(keys, cells, strict=True))
    assert len(items[b"004"]) == len(items[b"009"]) != len(items[b"005"])
    items[b"004"], items[b"009"] = items[b"009"], items[b"004"]
    facts = case.written(items, 0)
    assert facts.blobs == case.result.tables[0].blobs
    case.lie(case.with_table(0, **facts._asdict()), "reference leads")


def test_a_disk_that_fails_is_no_lie(case: Case) -> None:
    case.fs.fail_call(1)
    with pytest.raises(DiskFailed):
        end(prove(case.fs, FOLDER, case.job, case.result, case.feed, mapped=False))
