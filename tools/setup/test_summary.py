#!/usr/bin/env python3
"""Sums up one ctest run in test cases: test_summary.py RESULTS_FOLDER

RESULTS_FOLDER holds ctest.junit (ctest --output-junit) and, for every GoogleTest program, NAME.xml written through
GTEST_OUTPUT (moebius_test() in cmake/MoebiusModule.cmake sets it). A GoogleTest program counts with its cases; one
that failed without a failed case to show for it (crash, time limit, sanitizer report) counts as one more failure; any
other ctest entry counts as one. Names of failures come first, the last line is `N passed, N failed, N skipped`.
Exit code 0 when nothing failed and something ran.
"""
import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def cases_of_program(path):
    """(passed, failed names, skipped) of one GoogleTest result file."""
    passed, failed, skipped = 0, [], 0
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        if case.find("failure") is not None:
            failed.append(name)
        elif case.get("result") == "skipped" or case.find("skipped") is not None:
            skipped += 1
        elif case.get("status") == "run":
            passed += 1
    return passed, failed, skipped


def summarise(folder):
    folder = pathlib.Path(folder)
    passed, failed, skipped = 0, [], 0
    junit = folder / "ctest.junit"
    entries = ElementTree.parse(junit).getroot().iter("testcase") if junit.exists() else []
    for entry in entries:
        name, status = entry.get("name"), entry.get("status")
        failure = entry.find("failure")
        why = failure.get("message") if failure is not None else None
        program = folder / f"{name}.xml"
        try:
            cases = cases_of_program(program) if program.exists() else None
        except ElementTree.ParseError:
            cases, why = None, "its result file is incomplete"
        if status == "disabled":
            continue
        if cases is not None:
            passed += cases[0]
            failed += [f"{name}: {case}" for case in cases[1]]
            skipped += cases[2]
            if status != "run" and not cases[1]:
                failed.append(f"{name}: ended badly after its cases passed ({why or status})")
        elif status == "run":
            passed += 1
        elif status == "notrun" and entry.find("skipped") is not None and "SKIP_" in entry.find("skipped").get("message", ""):
            skipped += 1
        else:
            failed.append(f"{name}: {why or 'did not run' if status == 'notrun' else why or status}")
    return passed, failed, skipped


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    passed, failed, skipped = summarise(sys.argv[1])
    if failed:
        print("\nFailed:")
        for name in failed:
            print(f"  {name}")
    if passed + len(failed) + skipped == 0:
        print("No test matches this selection.")
    print(f"{passed} passed, {len(failed)} failed, {skipped} skipped")
    return 1 if failed or passed + skipped == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
