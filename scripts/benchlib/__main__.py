"""The command line of scripts/bench."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchlib import fallback, overlay, patch, report
from benchlib.common import Setting
from benchlib.measure import BenchError


@dataclass(frozen=True)
class Suite:
    """Cases, how often each program runs by default, and what peers are there beside QEMU."""

    cases: Mapping[str, Callable[[Setting], report.Result]]
    runs: int
    peers: Callable[[], Iterable[str]] = tuple


SUITES = {
    "overlay": Suite(overlay.CASES, 5),
    "patch": Suite(patch.CASES, 3, patch.versions),
    "fallback": Suite(fallback.CASES, 5),
}


def parse_arguments() -> argparse.Namespace:
    work = Path(os.environ.get("QCOWDELTA_WORK", ".work"))
    parser = argparse.ArgumentParser(prog="bench", description="qcowdelta against its peers")
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--runs", type=int, help="counted rounds (default: 5; patch: 3)")
    parser.add_argument(
        "--only", action="append", metavar="CASE", help="just this case; repeatable"
    )
    parser.add_argument("--dir", type=Path, default=work / "bench", help="where images are kept")
    parser.add_argument("--pair", type=Path, help="a golden pair (default: pair/ in --dir)")
    parser.add_argument("--json", action="store_true", help="figures of every run, as JSON")
    arguments = parser.parse_args()
    suite = SUITES[arguments.suite]
    if arguments.runs is None:
        arguments.runs = suite.runs
    unknown = set(arguments.only or ()) - set(suite.cases)
    if unknown or arguments.runs < 1:
        parser.error(f"cases are {', '.join(suite.cases)}; at least one run")
    return arguments


def run(arguments: argparse.Namespace) -> list[report.Result]:
    folder: Path = arguments.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(folder, (arguments.pair or folder / "pair").resolve(), arguments.runs)
    results = []
    for name, case in SUITES[arguments.suite].cases.items():
        if not arguments.only or name in arguments.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            results.append(case(setting))
            for output in folder.glob("*.qcow2"):
                output.unlink()
    return results


def main() -> int:
    arguments = parse_arguments()
    try:
        results = run(arguments)
        command = f"scripts/bench {arguments.suite}"
        render = report.as_json if arguments.json else report.markdown
        print(render(results, command, list(SUITES[arguments.suite].peers())))
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    holds = all(target.holds for result in results for target in result.targets)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
