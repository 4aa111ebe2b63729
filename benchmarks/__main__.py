"""The command ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import charts, words
from benchmarks.groups import GROUPS
from benchmarks.harness import FEWEST_ROUNDS, measure
from benchmarks.machine import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness import Figures, Group


#: The tolerance above a budget before ``--check`` reports it as exceeded: medians of ratios vary by a few percent from
#: one run to the next, even on an idle machine.
TOLERANCE = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what *arguments* ask for, print the tables, and return the exit status.

    The status is 0 even if budgets are exceeded, since the machine may be busy. With ``--check`` it is 1 if a budget is
    exceeded by more than the tolerance, and 2 if one could not be checked.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.publish is not None and options.only:
        parser.error("--publish shows everything, so --only cannot be")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="outfall-bench-", dir=options.directory) as made:
        directory = Path(made)
        report: dict[str, Any] = {**describe(directory), "groups": []}
        _print_head(report)
        for group in GROUPS:
            if options.only and group.name not in options.only:
                continue
            if options.check and all(row.budget is None for row in group.rows):
                continue
            figures = measure(group, directory, rounds=options.rounds, events=options.events, seconds=options.seconds)
            _print_table(group, figures)
            report["groups"].append(_as_json(group, figures, options))
    print(f"\n{time.perf_counter() - began:.0f} s in all; spread: half the distance of the quartiles, of the median")
    if options.json is not None:
        text = json.dumps(report, indent=2, ensure_ascii=False)
        if str(options.json) == "-":
            print(text)
        else:
            options.json.write_text(text + "\n", encoding="utf-8")
    if options.publish is not None:
        # Without the samples of each round, which are many.
        groups = [{**group, "rows": [_without_samples(row) for row in group["rows"]]} for group in report["groups"]]
        charts.publish(options.publish, {**report, "groups": groups})
    return _check(report) if options.check else 0


def _without_samples(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "samples"}


def _check(report: dict[str, Any]) -> int:
    """Print the budgets that are exceeded by more than the tolerance, or could not be checked; return the status."""
    above, unknown, kept = [], [], 0
    for group in report["groups"]:
        for row in group["rows"]:
            if row["budget"] is None:
                continue
            measured, unit = words.measured_of(row, group["unit"])
            name = f"{group['name']}: {row['name']}"
            if row["met"] is None:
                unknown.append(f"{name}: {row['missing'] or 'what it is compared with was not measured'}")
            elif measured > row["budget"] * (1 + TOLERANCE):
                above.append(f"{name}: {measured:.2f}{unit}, budget {row['budget']:.2f}{unit}")
            else:
                kept += 1
    for title, found in (("exceeded", above), ("not looked at", unknown)):
        for each in found:
            print(f"{title}: {each}")
    print(f"{kept} budgets kept within {TOLERANCE:.0%}, {len(above)} exceeded, {len(unknown)} not looked at")
    return 1 if above else 2 if unknown else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Outfall beside its peers.")
    names = [group.name for group in GROUPS]
    parser.add_argument("--rounds", type=_positive, metavar="N", help="turns that each row has (default: by group)")
    parser.add_argument("--events", type=_positive, metavar="N", help="events in each turn (default: by group)")
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="GROUP",
        help=f"measure this group alone; may be given several times: {', '.join(names)}",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        metavar="N",
        help=f"begin no new round of a group after so long, once it had {FEWEST_ROUNDS} (default: all rounds)",
    )
    parser.add_argument(
        "--publish", type=Path, metavar="DIR", help="write figures and charts for the documentation there"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"measure what has a budget; status 1 if one is exceeded by more than {TOLERANCE:.0%}%,"
        " 2 if one could not be looked at",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help='write all figures there as well; "-" prints them')
    parser.add_argument(
        "--directory",
        type=Path,
        default=_default_directory(),
        metavar="DIR",
        help="where the files are written and removed again (default: %(default)s)",
    )
    return parser


def _default_directory() -> Path:
    # /tmp is often in memory. /var/tmp survives a reboot, so it is on a disk.
    lasting = Path("/var/tmp")  # noqa: S108 - TemporaryDirectory makes a private one in it
    return lasting if lasting.is_dir() else Path(tempfile.gettempdir())


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"{text} is not 1 or more"
        raise argparse.ArgumentTypeError(msg)
    return number


def _print_head(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {report['system']}; {report['file system']}; load {report['load']}")
    versions = ", ".join(f"{name} {version}" for name, version in report["libraries"].items() if version)
    print(f"{report['python']}; {versions}")


def _print_table(group: Group, figures: list[Figures]) -> None:
    width = max(len(each.row.name) for each in figures)
    print(f"\n{group.name}: {group.about}")
    lossy = any(each.shares for each in figures)
    head = f"  {'':{width}} {group.unit:>9} {'spread':>7} {'x floor':>8} {'x peer':>7} {'budget':>7}"
    print(head + (f" {'arrived':>8}" if lossy else ""))
    for each in figures:
        if each.missing is not None:
            print(f"  {each.row.name:{width}} {each.missing:>9}")
            continue
        spread = "-" if each.spread is None else f"{each.spread:.0%}"
        verdict = {None: "", True: "met", False: "NOT MET"}[each.met]
        print(
            f"  {each.row.name:{width}} {_number(each.median):>9} {spread:>7} {_number(each.floor_ratio):>8}"
            f" {_number(each.peer_ratio):>7} {_number(each.row.budget):>7}"
            f"{_share(each.arrived) if lossy else ''} {verdict}".rstrip()
        )
    sys.stdout.flush()


def _share(value: float | None) -> str:
    return f" {'-' if value is None else f'{value:.1%}':>8}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _as_json(group: Group, figures: list[Figures], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": group.name,
        "about": group.about,
        "unit": group.unit,
        "rounds": max(len(each.samples) for each in figures),
        "events": options.events or group.events,
        "rows": [
            {
                "name": each.row.name,
                "missing": each.missing,
                "median": each.median,
                "spread": each.spread,
                "floor": each.row.floor,
                "floor_ratio": each.floor_ratio,
                "peer": each.row.peer,
                "peer_ratio": each.peer_ratio,
                "budget": each.row.budget,
                "met": each.met,
                "arrived": each.arrived,
                "samples": [round(sample, 4) for sample in each.samples],
            }
            for each in figures
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
