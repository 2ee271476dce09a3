#!/usr/bin/env python3
"""Tests of test_summary.py on result files as ctest and GoogleTest write them."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parent / "test_summary.py"
GTEST = """<?xml version="1.0"?><testsuites tests="4"><testsuite name="S">
<testcase name="a" status="run" result="completed" classname="S"/>
<testcase name="b" status="run" result="skipped" classname="S"><skipped message="x"/></testcase>
<testcase name="DISABLED_c" status="notrun" result="suppressed" classname="S"/>
{more}</testsuite></testsuites>"""
FAILED_CASE = ('<testcase name="d" status="run" result="completed" classname="S">'
               '<failure message="1 != 2" type=""/></testcase>')


def entry(name, status, inside=""):
    return f'<testcase name="{name}" classname="{name}" time="1" status="{status}">{inside}<system-out/></testcase>'


class TestSummary(unittest.TestCase):
    def summarise(self, entries, programs):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "ctest.junit").write_text("<testsuite>" + "".join(entries) + "</testsuite>")
            for name, text in programs.items():
                (folder / f"{name}.xml").write_text(text)
            result = subprocess.run([sys.executable, TOOL, folder], capture_output=True, text=True)
            return result.returncode, result.stdout.splitlines()

    def test_cases_are_counted_not_programs(self):
        code, lines = self.summarise([entry("p", "run"), entry("script", "run")], {"p": GTEST.format(more="")})
        self.assertEqual((code, lines), (0, ["2 passed, 0 failed, 1 skipped"]))

    def test_failed_cases_are_named(self):
        code, lines = self.summarise([entry("p", "fail", '<failure message="Failed"/>')],
                                     {"p": GTEST.format(more=FAILED_CASE)})
        self.assertEqual((code, lines[-2:]), (1, ["  p: S.d", "1 passed, 1 failed, 1 skipped"]))

    def test_a_crash_before_the_results_is_one_failure(self):
        code, lines = self.summarise([entry("p", "fail", '<failure message="SEGFAULT"/>')], {})
        self.assertEqual((code, lines[-2:]), (1, ["  p: SEGFAULT", "0 passed, 1 failed, 0 skipped"]))

    def test_a_bad_end_after_passing_cases_is_one_failure(self):
        code, lines = self.summarise([entry("p", "fail", '<failure message="exit 23"/>')], {"p": GTEST.format(more="")})
        self.assertEqual(code, 1)
        self.assertIn("p: ended badly after its cases passed (exit 23)", lines[-2])
        self.assertEqual(lines[-1], "1 passed, 1 failed, 1 skipped")

    def test_a_cut_off_result_file_is_a_failure(self):
        code, lines = self.summarise([entry("p", "fail", '<failure message="Timeout"/>')], {"p": "<testsuites><te"})
        self.assertEqual((code, lines[-1]), (1, "0 passed, 1 failed, 0 skipped"))

    def test_a_program_that_was_not_built_is_a_failure(self):
        code, lines = self.summarise([entry("p", "notrun", '<skipped message="Unable to find executable"/>')], {})
        self.assertEqual((code, lines[-1]), (1, "0 passed, 1 failed, 0 skipped"))

    def test_skipped_by_return_code_and_disabled_are_no_failures(self):
        code, lines = self.summarise([entry("p", "run"), entry("q", "disabled", '<skipped message="Disabled"/>'),
                                      entry("r", "notrun", '<skipped message="SKIP_RETURN_CODE=77"/>')], {})
        self.assertEqual((code, lines), (0, ["1 passed, 0 failed, 1 skipped"]))

    def test_nothing_run_is_an_error(self):
        code, lines = self.summarise([], {})
        self.assertEqual((code, lines), (1, ["No test matches this selection.", "0 passed, 0 failed, 0 skipped"]))


if __name__ == "__main__":
    unittest.main()
