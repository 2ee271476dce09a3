#!/usr/bin/env python3
"""Tests of check_monitoring: the repository passes, and a copy with one thing wrong does not."""
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def run(root):
    done = subprocess.run([sys.executable, HERE / "check_monitoring", root], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


class CheckMonitoring(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        shutil.copytree(ROOT / "packaging", self.root / "packaging")
        for path in (ROOT / "src").rglob("*.cpp"):
            if "moebius_" in path.read_text(encoding="utf-8"):
                copy = self.root / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)

    def tearDown(self):
        self.folder.cleanup()

    def change(self, name, before, after):
        path = self.root / "packaging" / "monitoring" / name
        text = path.read_text()
        self.assertIn(before, text)
        path.write_text(text.replace(before, after))

    def test_the_repository_passes(self):
        code, output = run(ROOT)
        self.assertEqual(code, 0, output)

    def test_a_metric_that_nothing_makes(self):
        self.change("rules/moebius.rules.yml", "moebius_expert_max_violation > 4", "moebius_expert_violation > 4")
        code, output = run(self.root)
        self.assertEqual(code, 1)
        self.assertIn("moebius_expert_violation is made nowhere", output)

    def test_a_folded_expression_is_read_to_its_end(self):
        self.change("rules/moebius.rules.yml", "increase(moebius_train_tokens_total[10m]) > 0",
                    "increase(moebius_trained_total[10m]) > 0")
        self.assertIn("moebius_trained_total is made nowhere", run(self.root)[1])

    def test_a_metric_that_was_renamed_in_the_program(self):
        for path in (self.root / "src").rglob("*.cpp"):
            path.write_text(path.read_text().replace('"moebius_queue_jobs"', '"moebius_queue_all_jobs"'))
        output = run(self.root)[1]
        self.assertIn("moebius-queue.json: moebius_queue_jobs is made nowhere", output)

    def test_a_dashboard_changed_by_hand(self):
        self.change("grafana/dashboards/moebius-queue.json", '"title": "Jobs"', '"title": "All jobs"')
        self.assertIn("not what make_dashboards writes", run(self.root)[1])

    @unittest.skipUnless(shutil.which("promtool"), "promtool is not installed")
    def test_an_alert_that_does_not_fire_as_its_test_says(self):
        self.change("rules/moebius.rules.yml", "moebius_expert_max_violation > 4", "moebius_expert_max_violation > 40")
        code, output = run(self.root)
        self.assertEqual(code, 1)
        self.assertIn("MoebiusExpertCollapse", output)


if __name__ == "__main__":
    unittest.main()
