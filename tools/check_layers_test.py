#!/usr/bin/env python3
"""Tests of tools/check_layers: on small bad trees, and on this checkout."""
import pathlib
import subprocess
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parent / "check_layers"


def run(root, *options):
    result = subprocess.run([TOOL, *options, root], capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


class CheckLayers(unittest.TestCase):
    def tree(self, files):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for name, text in files.items():
            path = pathlib.Path(folder.name) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder.name

    def test_allowed_arrows_pass(self):
        root = self.tree({"src/base/a.h": "#include <vector>\n", "src/ops/b.cpp":
                          '#include <ATen/core/Tensor.h>\n#include "base/a.h"\n#include "kernels/api/k.h"\n',
                          "src/kernels/api/k.h": '#include "base/a.h"\n'})
        self.assertEqual(run(root), (0, ""))

    def test_forbidden_arrow_is_named_with_file_and_line(self):
        root = self.tree({"src/nn/a.h": "\n", "src/ops/b.cpp": '#include <vector>\n#include "nn/a.h"\n'})
        code, output = run(root)
        self.assertEqual(code, 1)
        self.assertIn('src/ops/b.cpp:2: ops must not include nn ("nn/a.h"); it may include base, kernels', output)

    def test_torch_below_ops_is_refused(self):
        code, output = run(self.tree({"src/kernels/cpu/a.cpp": "#include <c10/util/Half.h>\n"}))
        self.assertEqual(code, 1)
        self.assertIn("src/kernels/cpu/a.cpp:1: kernels must not include libtorch", output)

    def test_header_circle_is_printed_whole(self):
        root = self.tree({"src/base/a.h": '#include "base/b.h"\n', "src/base/b.h": '\n#include "base/a.h"\n'})
        code, output = run(root)
        self.assertEqual(code, 1)
        self.assertIn("src/base/a.h:1: headers include each other: base/a.h -> base/b.h -> base/a.h", output)

    def test_unknown_module_and_missing_header_are_refused(self):
        root = self.tree({"src/misc/a.h": "\n", "src/base/b.cpp": '#include "base/gone.h"\n#include "b.h"\n'})
        code, output = run(root)
        self.assertEqual(code, 1)
        self.assertIn("module 'misc' is not in the table", output)
        self.assertIn('src/base/b.cpp:1: "base/gone.h" does not exist', output)
        self.assertIn('src/base/b.cpp:2: "b.h" is not of the form', output)

    def test_include_in_a_comment_does_not_count(self):
        root = self.tree({"src/base/a.cpp": '/* e.g.\n#include "train/x.h"\n*/\n// #include "cli/y.h"\n'})
        self.assertEqual(run(root), (0, ""))

    def test_print_shows_table_and_arrows(self):
        root = self.tree({"src/base/a.h": "\n", "src/data/b.h": '#include "base/a.h"\n'})
        code, output = run(root, "--print")
        self.assertEqual(code, 0)
        self.assertIn("L1 data       may include base, config, telemetry", output)
        self.assertIn("data -> base (1)", output)

    def test_this_checkout_is_clean(self):
        self.assertEqual(run(TOOL.parent.parent), (0, ""))


if __name__ == "__main__":
    unittest.main()
