#!/usr/bin/env python3
"""Tests of tools/slow_network; what needs namespaces is skipped where the machine cannot make them."""
import pathlib
import subprocess
import unittest

TOOL = pathlib.Path(__file__).resolve().parent / "slow_network"
REASON = subprocess.run([TOOL, "--check"], capture_output=True, text=True, check=False)


def run(*words):
    return subprocess.run([TOOL, *words], capture_output=True, text=True, check=False)


class Usage(unittest.TestCase):
    def test_says_what_is_wrong(self):
        self.assertIn("--ranks 0: 1 to 200", run("--ranks", "0", "--", "true").stderr)
        self.assertIn("no rank 2 of 2", run("--cut", "2:1", "--", "true").stderr)
        self.assertIn("no command", run().stderr)


@unittest.skipIf(REASON.returncode != 0, REASON.stderr.strip())
class Network(unittest.TestCase):
    def namespaces(self):
        return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout

    def test_ranks_reach_each_other_at_their_own_addresses(self):
        # Rank 1 listens, rank 0 sends; both by the addresses that the tool gives.
        script = """
import os, socket, time
rank = int(os.environ["RANK"])
assert os.environ["WORLD_SIZE"] == "2" and os.environ["GLOO_SOCKET_IFNAME"] == "eth0"
if rank == 1:
    with socket.create_server(("10.77.0.2", 29501)) as server:
        peer, (host, _) = server.accept()
        assert host == os.environ["MASTER_ADDR"], host
        assert peer.recv(5) == b"hello"
else:
    for attempt in range(100):
        try:
            with socket.create_connection(("10.77.0.2", 29501)) as peer:
                peer.sendall(b"hello")
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    else:
        raise SystemExit("nobody listens")
    print("sent")
"""
        result = run("--rate", "1gbit", "--", "python3", "-c", script)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "sent\n", ""))

    def test_shows_the_rank_that_fails_and_removes_everything(self):
        before = self.namespaces()
        result = run("--", "sh", "-c", 'echo "I am $RANK"; exit $((RANK * 3))')
        self.assertEqual(result.returncode, 3)
        self.assertEqual(result.stdout, "I am 0\n")
        self.assertIn("[rank 1] I am 1", result.stderr)
        self.assertIn("rank 1 ended with code 3", result.stderr)
        self.assertEqual(self.namespaces(), before)


if __name__ == "__main__":
    unittest.main()
