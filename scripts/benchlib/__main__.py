"""The command line of scripts/bench."""

import argparse
import os
import sys
from pathlib import Path

from benchlib import overlay, report
from benchlib.measure import BenchError
from benchlib.overlay import Setting

SUITES = {"overlay": overlay.CASES}


def parse_arguments() -> argparse.Namespace:
    work = Path(os.environ.get("QCOWDELTA_WORK", ".work"))
    parser = argparse.ArgumentParser(prog="bench", description="qcowdelta against its peers")
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--runs", type=int, default=5, help="counted rounds (default: 5)")
    parser.add_argument(
        "--only", action="append", metavar="CASE", help="just this case; repeatable"
    )
    parser.add_argument("--dir", type=Path, default=work / "bench", help="where images are kept")
    parser.add_argument("--pair", type=Path, help="a golden pair (default: pair/ in --dir)")
    parser.add_argument("--json", action="store_true", help="figures of every run, as JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.only or ()) - set(SUITES[arguments.suite])
    if unknown or arguments.runs < 1:
        parser.error(f"cases are {', '.join(SUITES[arguments.suite])}; at least one run")
    return arguments


def run(arguments: argparse.Namespace) -> list[report.Result]:
    folder: Path = arguments.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(folder, (arguments.pair or folder / "pair").resolve(), arguments.runs)
    results = []
    for name, case in SUITES[arguments.suite].items():
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
        print(render(results, command))
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    holds = all(target.holds for result in results for target in result.targets)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
