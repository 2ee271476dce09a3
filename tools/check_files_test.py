#!/usr/bin/env python3
"""Tests of tools/check_files on small trees, and on this checkout."""
import pathlib
import subprocess
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parent / "check_files"


class CheckFiles(unittest.TestCase):
    def run_on(self, files):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = pathlib.Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            result = subprocess.run([TOOL, folder], capture_output=True, text=True)
            return result.returncode, result.stdout

    def test_a_clean_file_passes(self):
        self.assertEqual(self.run_on({"src/base/a.h": "#pragma once\n"}), (0, ""))

    def test_long_file_warns_then_fails(self):
        code, output = self.run_on({"src/a.cpp": "\n" * 501})
        self.assertEqual(code, 0)
        self.assertIn("src/a.cpp:501: warning: 501 lines", output)
        code, output = self.run_on({"src/a.cpp": "\n" * 801})
        self.assertEqual(code, 1)
        self.assertIn("src/a.cpp:801: 801 lines, and 800 is the limit", output)

    def test_tests_may_have_a_thousand_lines(self):
        self.assertEqual(self.run_on({"src/a_test.cpp": "\n" * 1000})[0], 0)
        self.assertEqual(self.run_on({"src/a_test.cpp": "\n" * 1001})[0], 1)

    def test_banned_includes_are_named(self):
        code, output = self.run_on({"src/ops/a.cpp": "#include <vector>\n#include <torch/torch.h>\n"})
        self.assertEqual(code, 1)
        self.assertIn("src/ops/a.cpp:2: <torch/torch.h> is banned", output)
        code, output = self.run_on({"src/ops/a.h": "#include <ATen/ATen.h>\n"})
        self.assertEqual(code, 1)
        self.assertIn("src/ops/a.h:1: <ATen/ATen.h> is banned in headers", output)

    def test_unfinished_work_and_white_space_are_named(self):
        code, output = self.run_on({"src/a.cpp": "int a; \n// TO" + "DO\nint b;"})
        self.assertEqual(code, 1)
        self.assertIn("src/a.cpp:1: white space", output)
        self.assertIn("src/a.cpp:2: a word of unfinished work", output)
        self.assertIn("src/a.cpp:3: no newline", output)

    def test_this_checkout_is_clean(self):
        result = subprocess.run([TOOL], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout)


if __name__ == "__main__":
    unittest.main()
