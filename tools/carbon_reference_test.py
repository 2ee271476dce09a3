#!/usr/bin/env python3
"""Tests of carbon_reference: the deadlines of Let's Wait Awhile, and what it says of a folder that is not the data."""
import datetime
import importlib.machinery
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parent / "carbon_reference"
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("carbon_reference", str(SCRIPT))
carbon_reference = importlib.util.module_from_spec(importlib.util.spec_from_loader("carbon_reference", loader))
loader.exec_module(carbon_reference)


def at(text):
    return datetime.datetime.fromisoformat(text)


class Deadlines(unittest.TestCase):
    def test_next_workday(self):
        for end, expected in [("2020-01-04T12:00", "2020-01-06T09:00"),  # Saturday: Monday
                              ("2020-01-05T08:00", "2020-01-06T09:00"),  # Sunday: the next day
                              ("2020-01-07T17:30", "2020-01-08T09:00"),  # after work
                              ("2020-01-07T17:00", "2020-01-07T17:00"),
                              ("2020-01-07T03:30", "2020-01-07T09:00"),  # before work
                              ("2020-01-07T12:00", "2020-01-07T12:00")]:
            self.assertEqual(carbon_reference.next_workday(at(end)), at(expected), end)

    def test_semi_weekly(self):
        for end, expected in [("2020-01-06T09:00", "2020-01-06T09:00"), ("2020-01-06T09:30", "2020-01-09T09:00"),
                              ("2020-01-09T09:00", "2020-01-09T09:00"), ("2020-01-09T09:30", "2020-01-13T09:00"),
                              ("2020-01-06T08:30", "2020-01-06T09:00"), ("2020-01-12T23:30", "2020-01-13T09:00")]:
            self.assertEqual(carbon_reference.semi_weekly(at(end)), at(expected), end)


class Arguments(unittest.TestCase):
    def run_script(self, *arguments):
        return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)

    def test_names_what_is_wrong(self):
        with tempfile.TemporaryDirectory() as folder:
            result = self.run_script(folder)
            self.assertEqual(result.returncode, 2)
            self.assertIn(f"{folder} has no folder carbon/", result.stderr)
            result = self.run_script(folder, "gaya")
            self.assertEqual(result.returncode, 2)
            self.assertIn("section 'gaya' is none of lwa, gaia,", result.stderr)


if __name__ == "__main__":
    unittest.main()
