"""The results folder: rows in, frames out.

`<root>/<kind>/*.parquet`, one small immutable file for each finished case, so that any number of processes or machines
may write at once and a kill loses at most the case in hand. What counts is the newest row of each (suite, case_id).
A row dated more than a day ahead, by a wrong clock, would be the newest for years: it counts as the oldest.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shlex import quote
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from basedbench import atomic
from basedbench.errors import UserError, warn
from basedbench.store import files
from basedbench.store.schema import KINDS, check_row, plain_values, schema_of, to_rows, to_table
from basedbench.store.understood import understood as only_understood

_KEY = ["suite", "case_id"]
_ORDER = ["created_at", "row_id"]
_DATED = pa.schema({"created_at": pa.timestamp("us", tz="UTC")})
_CLOCKS_DIFFER = timedelta(days=1)
_JUST = timedelta(microseconds=1)
_NEVER_NULL = [*_KEY, "status", "created_at"]
# A disk may give back other bits than it was given. Older files, which have no checksums, are read all the same.
_CHECKED = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
CORRUPT = "corrupt"
_FIRST_US, _LAST_US = (
    pa.scalar(end.replace(tzinfo=UTC), _DATED.field(0).type).value for end in (datetime.min, datetime.max)
)


class Store:
    """A results folder that is written to. Raises UserError if it cannot be; `tell` is told if it goes away."""

    def __init__(self, root: Path | str, tell: Callable[[str], object] = warn) -> None:
        self.root, self.tell = Path(root), tell
        self._written = {self.root}
        self._later: dict[str, dict[tuple[str, str], datetime]] = {}
        for folder in (self.root, *(self.root / kind for kind in KINDS if (self.root / kind).exists())):
            files.check_writable(folder)
            files.remove_stale(folder)

    def write(self, kind: str, row: Mapping[str, Any]) -> Path:
        """Store one finished case, at once and durably; returns its file.

        Every promised column must be given (null will do; see `schema.blank_row`); `created_at` is filled in; JSON
        columns take an object or its text. Raises ValueError for a row that does not fit the schema, UserError if the
        disk is full or the folder cannot be written: rows stored before are safe.

        Where a row of the case is dated later than now, by another clock or by this one before it was set back, the new
        one is dated just behind it: it would else count as the older one, and what was run again would change nothing.
        """
        stored = check_row(kind, row)
        if row.get("created_at") is None and (later := self._dated_later(kind, stored)):
            stored["created_at"] = max(stored["created_at"], later + _JUST)
            self._later[kind][stored["suite"], stored["case_id"]] = stored["created_at"]
        name = files.part_name(stored["case_id"], stored["created_at"])
        path = self.root / kind / f"{name}{files.SUFFIX}"
        self.look_for(kind)
        what = f"the {kind} row of case {stored['case_id']} (suite {stored['suite']})"
        files.store_bytes(path, _parquet(to_table(kind, stored | {"row_id": name})), what)
        self._written.add(path.parent)
        return path

    def look_for(self, kind: str) -> None:
        """Tell, where rows went before, if a folder is there no more: the next row makes it anew."""
        gone = [folder for folder in (self.root, self.root / kind) if folder in self._written and not folder.exists()]
        for folder in gone[:1]:
            self.tell(
                f"the results folder {str(folder)!r} was renamed or deleted since this command wrote to it. It is made "
                "anew, and rows go there from now on; those stored before went away with it: move the files of a "
                "renamed folder into the new one."
            )

    def _dated_later(self, kind: str, row: Mapping[str, Any]) -> datetime | None:
        """The date of the case's newest row, if one that was to come was there when this store was first asked."""
        if kind not in self._later:
            with suppress(UserError):  # a file that cannot be read hides no row: whoever reads the folder is told
                self._later[kind] = _later(self.root / kind, schema_of(kind))
        return self._later.setdefault(kind, {}).get((row["suite"], row["case_id"]))

    def row(self, kind: str, suite: str, case_id: str) -> dict[str, Any] | None:
        """The newest row of a case as plain Python values, or None."""
        return next(iter(rows(self.root, kind, (pc.field("suite") == suite) & (pc.field("case_id") == case_id))), None)


def finished(root: Path | str, kind: str) -> dict[tuple[str, str], str]:
    """The status of every stored case, by (suite, case_id); the folder need not be there."""
    table = _newest(Path(root) / kind, schema_of(kind), [*_NEVER_NULL, "row_id"])
    return {(row["suite"], row["case_id"]): row["status"] for row in table.to_pylist()}


def load(root: Path | str, kind: str, *, understood: bool = False) -> pd.DataFrame:
    """The newest row of every (suite, case_id), oldest first, as a frame.

    `root` is a results folder such as `results` or `results/reference/h200`. Maps are dicts, lists are lists, JSON
    columns are text; columns that older rows lack are null. With `understood` without the rows that this version cannot
    make sense of, of which a warning tells. Raises UserError if there are no rows, or naming a file that cannot be
    read.
    """
    schema = schema_of(kind)
    table = _newest(Path(root) / kind, schema)
    if not table.num_rows:
        raise UserError(no_rows(Path(root), kind))
    if understood:
        table = only_understood(kind, table, str(root))
        if not table.num_rows:
            raise UserError(f"none of the {kind} rows in {str(root)!r} can be read by this version.")
    nested = [field for field in schema if pa.types.is_nested(field.type)]
    frame = table.drop_columns([field.name for field in nested]).to_pandas()
    for field in nested:
        frame[field.name] = pd.Series(plain_values(table.column(field.name), field.type), dtype=object)
    return frame[schema.names]


def rows(
    root: Path | str, kind: str, where: pc.Expression | None = None, *, understood: bool = False
) -> list[dict[str, Any]]:
    """What `load` returns as plain Python rows, where whole numbers stay whole; no row is no error here.

    `where` chooses cases by suite and case_id, such as `pyarrow.compute.field("suite") == "quick"`; by anything else it
    could choose a row that is not the newest of its case.
    """
    table = _newest(Path(root) / kind, schema_of(kind), where=where)
    return to_rows(only_understood(kind, table, str(root)) if understood else table)


def has_rows(root: Path | str, kind: str, where: pc.Expression) -> bool:
    """Whether any row is chosen, of which little is read."""
    return _read(Path(root) / kind, schema_of(kind), _NEVER_NULL, where).num_rows > 0


def compact(root: Path | str, kind: str) -> int:
    """Merge the files of a kind into one, and return how many there were.

    Every distinct row is kept, older ones of the same case too. The merged file is complete on the disk before the
    first old file goes: a reader sees every row at any instant, and a kill loses none. Raises UserError for a file
    that cannot be read, or if the disk is full.
    """
    schema, folder = schema_of(kind), Path(root) / kind
    for place in (Path(root), folder):
        files.remove_stale(place)
    sources = files.visible(folder)
    if len(sources) > 1:
        try:
            tables = [_read_one(path, schema) for path in sources]
        except FileNotFoundError:  # another merge is at work
            return compact(root, kind)
        merged = _distinct(_concatenated(tables, kind)).sort_by("created_at")
        files.store_bytes(
            folder / files.compacted_name(),
            _parquet(merged),
            f"the merged file of {kind} rows",
            "run the same command again",
        )
        try:
            for path in sources:
                path.unlink(missing_ok=True)
        except PermissionError as error:
            raise UserError(
                f"merged, but {str(path)!r} cannot be removed: {atomic.cause(error)}. No row is lost or counts twice."
            ) from error
    return len(sources)


def set_aside_corrupt(root: Path | str, kind: str) -> list[Path]:
    """Move every file that is no result into the folder `corrupt`; returns their new places.

    One that only cannot be read here and now (no permission, a failing disk) may well be whole: it stays, and is a
    UserError, as is a folder in which nothing can be moved.
    """
    schema, folder = schema_of(kind), Path(root) / kind
    moved = []
    for path in files.visible(folder):
        try:
            _read_one(path, schema)
        except _CorruptError:
            aside = files.free(folder / CORRUPT / path.name)
            try:
                aside.parent.mkdir(exist_ok=True)
                moved.append(path.rename(aside))
            except OSError as error:
                raise UserError(f"{str(path)!r} cannot be moved to {str(aside)!r}: {atomic.cause(error)}.") from error
        except FileNotFoundError:
            continue
    return moved


def kinds_in(root: Path | str) -> list[str]:
    """The kinds of result that a folder has files of."""
    return [kind for kind in KINDS if files.visible(Path(root) / kind)]


def _read(
    folder: Path, schema: pa.Schema, columns: Sequence[str] | None = None, where: pc.Expression | None = None
) -> pa.Table:
    """All rows of a folder in the given schema: columns a file lacks are null, columns unknown to us are left out."""
    while True:
        paths = files.visible(folder)
        if not paths:
            return schema.empty_table()
        try:
            return _scan(paths, schema, list(columns or schema.names), where)
        except FileNotFoundError:  # merged meanwhile: look again
            if all(path.exists() for path in paths):
                raise


def _scan(paths: list[Path], schema: pa.Schema, columns: list[str], where: pc.Expression | None) -> pa.Table:
    try:
        source = _dataset(paths, schema)
        table = source.to_table(columns=columns, filter=where)
        _check(table)
        return table
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError):
        for path in paths:  # one of them is to blame
            _read_one(path, schema)
        raise


def _dataset(paths: list[Path], schema: pa.Schema) -> ds.Dataset:
    return ds.dataset([files.for_pyarrow(path) for path in paths], schema=schema, format=_CHECKED)


def _read_one(path: Path, schema: pa.Schema) -> pa.Table:
    """One file, all its columns, those of the schema first and in its types.

    Raises _CorruptError if it is no result, another UserError if it cannot be read here and now, both with its name,
    FileNotFoundError if it is gone.
    """
    try:
        table = pq.ParquetFile(files.for_pyarrow(path), page_checksum_verification=True).read()
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        # pyarrow says OSError of damaged pages, too, but only the system's own errors have a number.
        if isinstance(error, OSError) and error.errno:
            raise UserError(
                f"result file {str(path)!r} cannot be read: {atomic.cause(error)}; it may be whole: make it readable."
            ) from error
        raise _CorruptError(path, error) from error
    except pa.ArrowException as error:  # no memory, or a compression that this pyarrow lacks
        raise UserError(
            f"result file {str(path)!r} cannot be read: {_first_clause(error)}; it may be whole."
        ) from error
    try:
        table.column("case_id")  # a foreign file has none
        columns = {field.name: _column(table, field) for field in schema}
        columns |= {name: table.column(name) for name in table.column_names if name not in columns}
        _check(pa.table(columns))
    except (pa.ArrowException, KeyError) as error:
        raise _CorruptError(path, error) from error
    return pa.table(columns)


def _concatenated(tables: Sequence[pa.Table], kind: str) -> pa.Table:
    """One table, not in the schema of this version: a newer one's columns are kept."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(
            f"the files of {kind} rows cannot be merged, since newer versions have a column in unlike types "
            f"({_first_clause(error)}); they are as they were: merge them with the newest version."
        ) from error


def _check(table: pa.Table) -> None:
    """ArrowInvalid where text is none, or something is missing that every row was written with: without a time none is
    the newest.
    """
    table.validate(full=True)
    empty = [name for name in _NEVER_NULL if table.column(name).null_count]
    if empty:
        raise pa.ArrowInvalid(f"rows without {' and '.join(empty)}")
    times = pc.min_max(table.column("created_at"))
    first, last = (times[end].value for end in ("min", "max"))
    if table.num_rows and not _FIRST_US <= first <= last <= _LAST_US:
        raise pa.ArrowInvalid("a created_at that no calendar has")


class _CorruptError(UserError):
    """A file among the results that is none."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(
            f"result file {str(path)!r} cannot be read ({_first_clause(error)}); `basedbench results compact "
            f"--set-aside-corrupt --results {quote(str(path.parent.parent))}` moves it into {path.parent / CORRUPT}, "
            "and its case can then be run again."
        )


def _first_clause(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0][:120]


def _column(table: pa.Table, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    if field.name not in table.column_names:
        return pa.nulls(len(table), field.type)
    return table.column(field.name).cast(field.type)


def _newest(
    folder: Path, schema: pa.Schema, columns: Sequence[str] | None = None, where: pc.Expression | None = None
) -> pa.Table:
    """The newest row of each (suite, case_id), oldest first."""
    table = _read(folder, schema, columns, where)
    keys = table.select([*_KEY, *_ORDER]).to_pandas()
    latest = datetime.now(UTC) + _CLOCKS_DIFFER
    keys["credible"] = keys["created_at"] <= latest
    if not keys["credible"].all():
        _warn_of_clocks(folder, latest)
    keys = keys.sort_values(["credible", *_ORDER]).drop_duplicates(_KEY, keep="last")
    return table.take(keys.index.to_numpy())


def _later(folder: Path, schema: pa.Schema) -> dict[tuple[str, str], datetime]:
    """The cases with rows dated later than now, with the last date that counts. Files that can have none stay shut."""
    now = datetime.now(UTC)
    dated = (pc.field("created_at") > now) & (pc.field("created_at") <= now + _CLOCKS_DIFFER)
    paths = [path for path in files.visible(folder) if not files.dated_before(path, now)]
    found: dict[tuple[str, str], datetime] = {}
    with suppress(FileNotFoundError):  # merged meanwhile
        for row in _scan(paths, schema, [*_NEVER_NULL], dated).to_pylist() if paths else ():
            key = (row["suite"], row["case_id"])
            found[key] = max(row["created_at"], found.get(key, now))
    return found


def _warn_of_clocks(folder: Path, latest: datetime) -> None:
    with suppress(FileNotFoundError):  # merged meanwhile: the next reader says it
        source = _dataset(files.visible(folder), _DATED)
        late = [part.path for part in source.get_fragments() if part.count_rows(filter=pc.field("created_at") > latest)]
        warn(
            f"rows in {' and '.join(late)} are dated in the future, by a clock that was wrong; they count as older "
            "than all others."
        )


def _distinct(table: pa.Table) -> pa.Table:
    """Each row once: two merges at the same time may both have kept it."""
    names = table.column("row_id").to_pandas()
    return table.filter(pa.array((names.isna() | ~names.duplicated()).to_numpy()))


def _parquet(table: pa.Table) -> memoryview:
    # Of a single row zstd makes nothing smaller, and takes most of the time that storing it does.
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd" if table.num_rows > 1 else "snappy", write_page_checksum=True)
    return memoryview(sink.getvalue())


def no_rows(root: Path, kind: str) -> str:
    """The sentence that says there are no results here, and what to do."""
    command = {"recall": "recall --sweep", "throughput": "throughput", "calibration": "calibrate"}[kind]
    depths = (f"{kind}/*", f"*/{kind}/*", f"*/*/{kind}/*")
    near = [
        path
        for depth in depths
        for path in (root.parent if root.name == kind else root).glob(depth + files.SUFFIX)
        if path.is_file()
    ]
    hint = f", or look in one that has some: {', '.join(sorted({str(path.parent.parent) for path in near}))}"
    first = f"run `basedbench {command} --out {quote(str(root))}` first"
    return f"no {kind} results in {str(root)!r}: {first}{hint if near else ''}."
