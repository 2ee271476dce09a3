#!/usr/bin/env python3
"""Tests of tools/energy_check: what it makes of another process' log."""
import importlib.machinery
import importlib.util
import pathlib
import subprocess
import sys
import unittest

TOOL = pathlib.Path(__file__).resolve().parent / "energy_check"
loader = importlib.machinery.SourceFileLoader("energy_check", str(TOOL))
energy_check = importlib.util.module_from_spec(importlib.util.spec_from_loader("energy_check", loader))
sys.dont_write_bytecode = True
loader.exec_module(energy_check)


class Log(unittest.TestCase):
    # 500 W from 0 s on; the counter is renewed every 0.1 s and read every 0.03 s.
    LINES = [f"{0.03 * i:.6f} e {500 * (int(0.3 * i) / 10):.3f}" for i in range(100)] + ["0.5 w 500", "0.6 w 510", "0.7 c 1500", "x"]

    def test_the_counter_is_laid_straight_between_its_renewals(self):
        series = energy_check.Series(self.LINES)
        self.assertAlmostEqual(series.joules(0.5, 2.5), 1000, delta=20)  # 0.03 s is 15 J
        self.assertAlmostEqual(series.renewal_seconds(), 0.09, delta=0.02)
        self.assertEqual(series.mhz(0, 1), 1500)

    def test_a_span_that_was_not_logged_has_no_energy(self):
        with self.assertRaises(ValueError):
            energy_check.Series(self.LINES).joules(-1, 1)
        with self.assertRaises(ValueError):
            energy_check.Series([]).joules(0, 1)


class Usage(unittest.TestCase):
    def test_the_folder_must_be_named(self):
        self.assertIn("FOLDER is missing", subprocess.run([TOOL], capture_output=True, text=True, check=False).stderr)


if __name__ == "__main__":
    unittest.main()
