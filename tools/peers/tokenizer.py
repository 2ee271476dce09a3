#!/usr/bin/env python3
"""Tokenizers beside each other: the same ids, and how fast.

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install tokenizers==0.23.3 tiktoken==0.14.0 numpy
    /tmp/peers/bin/python tools/peers/tokenizer.py --tokenizer DIR/tokenizer.json TEXT…

Encodes each text with the `tokenizers` package (one call for the whole text, and line by line, which suits its cache better)
and with `moebius data encode`, compares the ids one by one and prints a line `RESULT {json}` per text. With --tiktoken FILE (ranks in
the form of tiktoken; the vocabulary must be that of the tokenizer.json) tiktoken is timed too and its ids compared. One thread;
medians of --repeats passes; MB are 1e6 bytes. `--from-tiktoken FILE --pattern P --out F` writes a tokenizer.json for such ranks.
"""
import argparse
import base64
import json
import os
import pathlib
import re
import statistics
import subprocess
import time

os.environ["RAYON_NUM_THREADS"] = "1"  # before the import: the package reads it once
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np  # noqa: E402
import tokenizers  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CL100K = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": CL100K,
    "qwen2": CL100K.replace(r"\p{N}{1,3}", r"\p{N}"),
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?|"
             r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def read_ranks(path):
    pairs = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def byte_alphabet():
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(others)}


def tokenizer_json(ranks, pattern):
    """Every way to join two tokens into a third is a merge; the rank of the third is its turn."""
    letters = byte_alphabet()

    def text(token):
        return "".join(letters[b] for b in token)
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = [(ranks[token[:i]], ranks[token[i:]], i) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += [[text(token[:i]), text(token[i:])] for _, _, i in sorted(cuts)]
    split = {"type": "Split", "pattern": {"Regex": PATTERNS[pattern]}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    end = {"id": max(ranks.values()) + 1, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                      "vocab": {text(token): rank for token, rank in ranks.items()}, "merges": merges}}


def rate(encode, size, repeats):
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        encode()
        seconds.append(time.perf_counter() - begin)
    return round(size / statistics.median(seconds) / 1e6, 2)


def moebius(program, *arguments):
    return subprocess.run([program, "data", "encode", *arguments], check=True, capture_output=True, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--tokenizer")
    parser.add_argument("--moebius", default=str(ROOT / "moebius"))
    parser.add_argument("--tiktoken", type=pathlib.Path)
    parser.add_argument("--from-tiktoken", type=pathlib.Path)
    parser.add_argument("--pattern", choices=PATTERNS, default="cl100k")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--own-repeats", type=int, default=21)
    options = parser.parse_args()
    if options.from_tiktoken:
        made = tokenizer_json(read_ranks(options.from_tiktoken), options.pattern)
        options.out.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
        return
    theirs = tokenizers.Tokenizer.from_file(options.tokenizer)
    other = None
    if options.tiktoken:
        import tiktoken
        other = tiktoken.Encoding("peer", pat_str=PATTERNS[options.pattern], mergeable_ranks=read_ranks(options.tiktoken), special_tokens={})
    failed = 0
    for name in options.texts:
        with open(name, encoding="utf-8", newline="") as file:
            text = file.read()
        size = len(text.encode())
        result = {"text": name, "bytes": size, "tokenizer": options.tokenizer, "tokenizers": tokenizers.__version__}
        ids = np.array(theirs.encode(text, add_special_tokens=False).ids)
        own = np.array(moebius(options.moebius, name, "--tokenizer", options.tokenizer, "--ids").split(), dtype=np.int64)
        result["tokens"] = len(ids)
        result["same_ids"] = bool(len(ids) == len(own) and (ids == own).all())
        if not result["same_ids"]:
            failed += 1
            shared = min(len(ids), len(own))
            apart = np.nonzero(ids[:shared] != own[:shared])[0]
            first = int(apart[0]) if len(apart) else shared
            result["first_difference"] = first
            result["context"] = theirs.decode(ids[max(0, first - 8):first + 8].tolist())
        timed = json.loads(moebius(options.moebius, name, "--tokenizer", options.tokenizer, "--json", "--repeats", str(options.own_repeats)))
        result["moebius_mb_s"] = round(timed["megabytes_per_second"], 2)
        firsts = [json.loads(moebius(options.moebius, name, "--tokenizer", options.tokenizer, "--json", "--repeats", "1"))["megabytes_per_second_first"]
                  for _ in range(options.repeats)]
        result["moebius_first_mb_s"] = round(statistics.median(firsts), 2)
        result["tokenizers_mb_s"] = rate(lambda: theirs.encode(text, add_special_tokens=False), size, options.repeats)
        lines = re.findall(r"[^\n]*\n|[^\n]+", text)
        result["tokenizers_lines_mb_s"] = rate(lambda: [theirs.encode(line, add_special_tokens=False) for line in lines], size, options.repeats)
        if other:
            result["tiktoken"] = tiktoken.__version__
            result["tiktoken_same_ids"] = other.encode_ordinary(text) == ids.tolist()
            result["tiktoken_mb_s"] = rate(lambda: other.encode_ordinary(text), size, options.repeats)
        print("RESULT", json.dumps(result, ensure_ascii=False), flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
