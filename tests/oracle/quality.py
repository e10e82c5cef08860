#!/usr/bin/env python3
"""Compares the statistics of `quality/` with numpy and scipy on fixed data.

    python quality.py PROGRAM                      PROGRAM: the built example `oracle` of tidegate-quality

Counts, extremes, frequent values, sums, means and spreads must agree to rounding; distinct counts to five standard
deviations of HyperLogLog; quantiles by rank to twice the sketch's stated 99 % bound; PSI, Jensen-Shannon distance and
chi-square to rounding, given the same bins; chi-square of the raw categories likewise; Kolmogorov-Smirnov within the
error that is stated with it. Prints what was compared; exits 1 if anything differs.
"""

import collections
import json
import math
import subprocess
import sys

import numpy as np
from scipy import stats
from scipy.spatial.distance import jensenshannon

RANKS = sorted({0.0, 0.01, 0.99, 1.0} | {round(i / 40, 3) for i in range(1, 40)})
RANK_ERROR = 2 * (0.0105 + 0.0064)
DISTINCT_ERROR = 5 * 0.01625


def columns() -> dict[str, tuple[str, list]]:
    """Fixed data: name to type and values, None where there is none."""
    random = np.random.default_rng(20130108)
    rows = 60_000

    def with_nulls(values, share):
        return [None if gone else value for value, gone in zip(values, random.random(len(values)) < share)]

    carriers = np.array(["UA", "B6", "EV", "DL", "AA", "MQ", "US", "9E", "WN", "VX"])
    chances = np.array([17, 16, 16, 14, 10, 8, 6, 6, 4, 3]) / 100
    shifted = np.roll(chances, 1)
    delays = random.gamma(2.0, 18.0, rows) - 20
    return {
        "delay": ("float64", with_nulls(delays.tolist(), 0.03)),
        "delay, later": ("float64", with_nulls((random.gamma(2.0, 18.0, rows) - 20).tolist(), 0.03)),
        "delay, in seconds": ("float64", (random.gamma(2.0, 18.0, rows) * 60 - 1200).tolist()),
        "delay, moved": ("float64", (random.gamma(2.0, 18.0, 20_000) - 12).tolist()),
        "price": ("float64", (1000 + random.normal(0, 0.5, rows)).tolist()),
        "price, moved": ("float64", (1000.4 + random.normal(0, 0.5, rows)).tolist()),
        "odd floats": ("float64", [1.5, "NaN", None, "inf", "-inf", -0.0, 0.0, 5e-324, 1e308, 1e308, "NaN"]),
        "stops": ("int64", random.poisson(1.2, rows).tolist()),
        "stops, more": ("int64", random.poisson(1.3, rows).tolist()),
        "distance": ("int64", with_nulls(random.integers(-3000, 3000, rows).tolist(), 0.2)),
        "large": ("int64", [2**62, 2**62, -(2**62), 2**63 - 1, -(2**63)]),
        "days": ("date32", (15_706 + random.integers(0, 365, rows)).tolist()),
        "carrier": ("utf8", with_nulls(random.choice(carriers, rows, p=chances).tolist(), 0.01)),
        "carrier, later": ("utf8", random.choice(carriers, rows, p=chances).tolist()),
        "carrier, renamed": ("utf8", random.choice(carriers, 5_000, p=shifted).tolist()),
        "names": ("utf8", [f"N{number}ü" for number in random.integers(0, 20_000, rows)]),
        "names, others": ("utf8", [f"N{number}ü" for number in random.integers(8_000, 28_000, rows)]),
        "on time": ("boolean", with_nulls((random.random(rows) < 0.7).tolist(), 0.1)),
        "on time, less": ("boolean", (random.random(1_000) < 0.6).tolist()),
        "nothing": ("float64", [None, None]),
        "empty": ("int64", []),
        "one": ("float64", [42.5]),
        "constant": ("float64", [0.1] * 5_000),
    }


PAIRS = [
    ("delay", "delay, later"), ("delay", "delay, in seconds"), ("delay", "delay, moved"), ("price", "price, moved"),
    ("stops", "stops, more"), ("carrier", "carrier, later"), ("carrier", "carrier, renamed"), ("names", "names, others"),
    ("on time", "on time, less"), ("distance", "distance"), ("constant", "delay"),
]

NUMBERS = [
    (20.0, [10.0, 11.0, 9.0, 10.5, 9.5, 1000.0]), (10.0, [10.0, 11.0, 9.0]), (6.0, [5.0, 5.0, 5.0, 5.0, 7.0]),
    (5.0, [5.0, 5.0, 5.0]), (5.1, [5.0, 5.0, 5.0]), (1.0, [1.0]),
]

failures: list[str] = []
compared = 0


def same(what: str, found, expected, tolerance=0.0):
    global compared
    compared += 1
    if found is None or expected is None or isinstance(expected, (str, bool, list)):
        good = found == expected
    else:
        good = abs(found - expected) <= tolerance * max(abs(expected), 1e-300)
    if not good:
        failures.append(f"{what}: {found} instead of {expected}")


def within(what: str, found: float, expected: float, error: float):
    global compared
    compared += 1
    if not abs(found - expected) <= error:
        failures.append(f"{what}: {found} instead of {expected}, give or take {error}")


def check_column(name: str, kind: str, values: list, found: dict):
    present = [value for value in values if value is not None]
    same(f"{name}: rows", found.get("rows", 0), len(values))
    same(f"{name}: nulls", found["nulls"], len(values) - len(present))
    if kind in ("float64", "int64", "date32"):
        numbers = np.array([float(value) for value in present], dtype="float64")
        finite = numbers[np.isfinite(numbers)]
        same(f"{name}: NaN", found.get("nans", 0), int(np.isnan(numbers).sum()))
        same(f"{name}: infinities", found.get("infinities", 0), int(np.isinf(numbers).sum()))
        real = None if finite.size == 0 else math.fsum(finite / len(finite))
        same(f"{name}: mean", found.get("mean"), real, 1e-12)
        with np.errstate(all="ignore"):
            spread = float(finite.std(ddof=1)) if len(finite) > 1 else None
        same(f"{name}: stddev", found.get("stddev"), spread if spread is not None and math.isfinite(spread) else None, 1e-9) \
            if name != "constant" else within(f"{name}: stddev", found["stddev"], 0.0, 1e-12)
        if kind != "date32":
            try:
                total = float(sum(present)) if kind == "int64" else math.fsum(finite)
            except OverflowError:
                total = None
            same(f"{name}: sum", found.get("sum"), None if finite.size == 0 else total, 1e-12)
        for rank, quantile in zip(RANKS, found.get("quantiles", [])):
            # any rank that the value holds will do; it is rounded to six digits of the spread
            rounded = 1e-5 * (finite.max() / 2 - finite.min() / 2)
            low, high = (finite < quantile - rounded).mean(), (finite <= quantile + rounded).mean()
            error = 1 / len(finite) if len(finite) < 250 else RANK_ERROR
            within(f"{name}: p{rank * 100:g}", min(max(rank, low), high), rank, error)
        if finite.size:
            same(f"{name}: quantiles", len(found["quantiles"]), len(RANKS))
        distinct = len(set(numbers[~np.isnan(numbers)].tolist()))
    else:
        distinct = len(set(present))
    within(f"{name}: distinct", found["distinct"], distinct, distinct * DISTINCT_ERROR)
    if kind == "utf8":
        # in the order of bytes, which is that of code points
        same(f"{name}: min", found.get("min"), min(present))
        same(f"{name}: max", found.get("max"), max(present))
        lengths = np.array([len(text) for text in present])
        expected = {"min": int(lengths.min()), "max": int(lengths.max()), "mean": float(lengths.mean())}
        for key, value in expected.items():
            same(f"{name}: length {key}", found["lengths"][key], value, 1e-12)
    if kind == "boolean":
        same(f"{name}: trues", found["trues"], sum(present))
    if kind == "int64" and present:
        same(f"{name}: min", found["min"], str(min(present)))
        same(f"{name}: max", found["max"], str(max(present)))
    if kind in ("int64", "utf8") and present:
        counts = collections.Counter(present)
        for value in found.get("frequent", []):
            key = int(value["value"]) if kind == "int64" else value["value"]
            error = found.get("frequent_error", 0)
            within(f"{name}: count of {key}", value["count"] + error / 2, counts[key], error / 2)


def check_pair(a: str, b: str, kind: str, reference: list, current: list, found: dict):
    name = f"{a} / {b}"
    r, c = np.array(found["reference"]), np.array(found["current"])
    rows = found["rows"]
    within(f"{name}: shares", r.sum() + c.sum(), 2.0, 1e-9)
    smooth = lambda share, n: (share * n + 0.5) / (n + 0.5 * len(share))
    sr, sc = smooth(r, rows[0]), smooth(c, rows[1])
    same(f"{name}: PSI", found["psi"], float(((sc - sr) * np.log(sc / sr)).sum()), 1e-9)
    within(f"{name}: Jensen-Shannon", found["jensen_shannon"], float(np.nan_to_num(jensenshannon(r, c, base=2))), 1e-9)
    reference = [value for value in reference if value is not None]
    current = [value for value in current if value is not None]
    if found["chi_square"]:
        if found["basis"] == "Values":
            # from the raw values, so that the shares are proven too
            kinds = sorted(set(reference) | set(current))
            table = np.array([[side.count(kind) for kind in kinds] for side in (reference, current)])
        else:
            table = np.array([r * rows[0], c * rows[1]]).round()
        statistic, p_value, degrees, _ = stats.chi2_contingency(table, correction=False)
        same(f"{name}: chi-square", found["chi_square"]["statistic"], statistic, 1e-9)
        same(f"{name}: degrees", found["chi_square"]["degrees"], degrees)
        within(f"{name}: p-value", found["chi_square"]["p_value"], p_value, p_value * 1e-7 + 1e-300)
    if kind == "float64" or kind == "int64":
        ks = found["kolmogorov_smirnov"]
        real = stats.ks_2samp(reference, current, method="asymp")
        within(f"{name}: Kolmogorov-Smirnov", ks["statistic"], real.statistic, ks["error"])
        size = math.sqrt(len(reference) * len(current) / (len(reference) + len(current)))
        within(f"{name}: its p-value", ks["p_value"], stats.kstwobign.sf(size * ks["statistic"]), 1e-12)
        # what matters is found, and what does not is not
        if "later" in b:
            within(f"{name}: no shift", found["psi"], 0.0, 0.01)


def check_number(value: float, history: list, found: dict):
    if len(history) < 3:
        same(f"{value} in {history}", found.get("error"), f"too few earlier values to judge by: {len(history)} of 3")
        return
    median = float(np.median(history))
    deviation = float(stats.median_abs_deviation(history, scale="normal"))
    if deviation == 0:
        deviation = math.sqrt(math.pi / 2) * float(np.mean(np.abs(np.array(history) - median)))
    same(f"{value} in {history}: median", found["median"], median, 1e-12)
    same(f"{value} in {history}: deviation", found["deviation"], deviation, 1e-7)
    if deviation == 0:
        same(f"{value} in {history}: infinite", found["infinite"], value != median)
    else:
        same(f"{value} in {history}: z", found["z"], (value - median) / deviation, 1e-7)


def main():
    data = columns()
    asked = {
        "columns": {name: {"type": kind, "values": values} for name, (kind, values) in data.items()},
        "pairs": PAIRS,
        "numbers": NUMBERS,
    }
    done = subprocess.run([sys.argv[1]], input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    for name, (kind, values) in data.items():
        check_column(name, kind, values, found["columns"][name])
    for (a, b), pair in zip(PAIRS, found["pairs"], strict=True):
        check_pair(a, b, data[a][0], data[a][1], data[b][1], pair)
        ks = pair["kolmogorov_smirnov"]
        shown = f"D {ks['statistic']:.4f} ± {ks['error']:.4f}" if ks else ""
        print(f"{a} / {b}: {pair['basis'].lower()}, PSI {pair['psi']:.4f}, JS {pair['jensen_shannon']:.4f} {shown}")
    for (value, history), number in zip(NUMBERS, found["numbers"], strict=True):
        check_number(value, history, number)
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{compared} figures compared, {len(failures)} differ")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
