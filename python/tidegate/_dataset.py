"""Training and scoring sets, and the labels that they are made for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ._errors import WrongRequest

if TYPE_CHECKING:
    import pandas
    import polars


@dataclass(frozen=True)
class Sql:
    """Labels as a query over the project's sources, as in ``Sql("SELECT carrier, time_hour AS event_timestamp FROM flights")``."""

    query: str


class Dataset:
    """A training or scoring set: the columns of the labels, and beside them the features as they were known at each label.

    It is held as Arrow, and everything that reads Arrow streams (DuckDB, Polars, pyarrow) takes it as it is.
    """

    def __init__(self, table: pa.Table, manifest: dict[str, Any]) -> None:
        self._table = table
        self._manifest = manifest

    @property
    def manifest(self) -> dict[str, Any]:
        """What it was made of: definitions, snapshots and table versions, digests, nulls per column (docs/datasets.md)."""
        return self._manifest

    @property
    def column_names(self) -> list[str]:
        """The columns of the labels, then those of the features."""
        names: list[str] = self._table.column_names
        return names

    def to_arrow(self) -> pa.Table:
        """The rows as a ``pyarrow.Table``; nothing is copied."""
        return self._table

    def to_pandas(self, **options: Any) -> pandas.DataFrame:
        """The rows as a pandas frame; ``options`` are those of ``pyarrow.Table.to_pandas``."""
        return self._table.to_pandas(**options)

    def to_polars(self) -> polars.DataFrame:
        """The rows as a Polars frame."""
        import polars

        frame = polars.from_arrow(self._table)
        assert isinstance(frame, polars.DataFrame)
        return frame

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        count: int = self._table.num_rows
        return count

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return iter(self._table.to_batches())

    def __repr__(self) -> str:
        views = ", ".join(self._manifest["views"])
        return f"<tidegate.Dataset of {len(self):,} rows × {len(self.column_names)} columns from {views}>"


def spine_of(given: object) -> tuple[str, object]:
    """What labels are, and they themselves, for the native half.

    Raises ``WrongRequest`` for what labels cannot be.
    """
    if isinstance(given, Sql):
        return "sql", given.query
    if isinstance(given, (str, os.PathLike)):
        return "file", os.fspath(given)
    if isinstance(given, Mapping):
        try:
            return "rows", pa.table(dict(given))
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise WrongRequest(f"the labels are no table: {error}", "give columns of equal length") from error
    if hasattr(given, "__arrow_c_stream__") and not _is_pandas(given):
        return "rows", given
    table = table_of(given, "labels")
    if table is not None:
        return "rows", table
    raise WrongRequest(
        f"labels cannot be a {type(given).__name__}",
        "give a frame of pandas, Polars or Arrow, a dict of columns, a path, or `tidegate.Sql`",
    )


def table_of(given: object, what: str) -> pa.Table | None:
    """A frame of pandas, Polars or Arrow as a table; ``None`` for anything that is none.

    Raises ``WrongRequest`` for a frame that cannot be read, which is called ``what``.
    """
    if _is_pandas(given):
        try:
            # An index with a name is a column; one without only counts.
            named = any(name is not None for name in given.index.names)  # type: ignore[attr-defined]
            table = pa.Table.from_pandas(given, preserve_index=named)
        except (pa.ArrowException, TypeError, ValueError) as error:
            hint = "give each column values of one type"
            raise WrongRequest(f"the {what} cannot be read: {error}", hint) from error
        # What pandas notes for itself would turn columns into an index again.
        return table.replace_schema_metadata(None)
    if hasattr(given, "__arrow_c_stream__") or hasattr(given, "__arrow_c_array__"):
        try:
            return pa.table(given)
        except (pa.ArrowException, TypeError, ValueError) as error:
            hint = "give a frame or a table: several columns, each with its name"
            raise WrongRequest(f"the {what} are no table: {error}", hint) from error
    return None


def _is_pandas(given: object) -> bool:
    of = type(given)
    return of.__module__.split(".")[0] == "pandas" and of.__name__ == "DataFrame"
