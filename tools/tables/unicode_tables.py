#!/usr/bin/env python3
"""Writes src/data/bpe/category_data.cpp and src/data/bpe/normal_form_data.cpp.

    python3 -m venv /tmp/tables && /tmp/tables/bin/pip install unicodedata2==16.0.0
    /tmp/tables/bin/python tools/tables/unicode_tables.py

The versions follow the `tokenizers` package (0.23), whose ids Moebius reproduces: its regular expressions (Oniguruma) know
Unicode 16.0, its normal forms (the crate unicode-normalization-alignments) Unicode 9.0. The second differs from the first only
by the characters that were added since: they are listed below, found by normalising every character with the package.
"""
import pathlib
import unicodedata2

ROOT = pathlib.Path(__file__).resolve().parents[2]
VERSION = "16.0.0"
CATEGORIES = ("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co Cn").split()
END = 0x110000

# Characters with a combining class or a decomposition that Unicode 9.0 did not have.
ADDED_SINCE_9 = [
    (0x7FD, 0x7FD), (0x897, 0x89F), (0x8CA, 0x8D3), (0x9FE, 0x9FE), (0xC3C, 0xC3C), (0xD3B, 0xD3C), (0xEBA, 0xEBA),
    (0x1715, 0x1715), (0x1ABF, 0x1ACE), (0x1DF6, 0x1DFA), (0xA82C, 0xA82C), (0x105C9, 0x105C9), (0x105E4, 0x105E4),
    (0x10D24, 0x10D27), (0x10D69, 0x10D6D), (0x10EAB, 0x10EAC), (0x10EFD, 0x10EFF), (0x10F46, 0x10F50),
    (0x10F82, 0x10F85), (0x11070, 0x11070), (0x1133B, 0x1133B), (0x11383, 0x11383), (0x11385, 0x11385),
    (0x1138E, 0x1138E), (0x11391, 0x11391), (0x113C5, 0x113C5), (0x113C7, 0x113C8), (0x113CE, 0x113D0),
    (0x1145E, 0x1145E), (0x11839, 0x1183A), (0x11938, 0x11938), (0x1193D, 0x1193E), (0x11943, 0x11943),
    (0x119E0, 0x119E0), (0x11A34, 0x11A34), (0x11A47, 0x11A47), (0x11A99, 0x11A99), (0x11D42, 0x11D42),
    (0x11D44, 0x11D45), (0x11D97, 0x11D97), (0x11F41, 0x11F42), (0x16121, 0x16128), (0x1612F, 0x1612F),
    (0x16D68, 0x16D6A), (0x16FF0, 0x16FF1), (0x1E08F, 0x1E08F), (0x1E130, 0x1E136), (0x1E2AE, 0x1E2AE),
    (0x1E2EC, 0x1E2EF), (0x1E4EC, 0x1E4EF), (0x1E5EE, 0x1E5EF),
]


def is_added(code):
    return any(first <= code <= last for first, last in ADDED_SINCE_9)


def combining_class(code):
    return 0 if is_added(code) else unicodedata2.combining(chr(code))


def changes(value_of):
    """(code, value) wherever the value differs from that of the code point before."""
    last = None
    for code in range(END):
        value = value_of(code)
        if value != last:
            yield code, value
            last = value


def decompositions():
    """(code, first, second or 0, whether the pair composes again), one step each; Hangul syllables are computed."""
    for code in range(END):
        text = unicodedata2.decomposition(chr(code))
        if not text or text.startswith("<") or is_added(code):
            continue
        parts = [int(part, 16) for part in text.split()]
        composes = len(parts) == 2 and unicodedata2.normalize("NFC", chr(code)) == chr(code)
        yield code, parts[0], parts[1] if len(parts) == 2 else 0, composes


def array(kind, name, values):
    lines, line = [], " "
    for value in values:
        text = f" 0x{value:X},"
        if len(line) + len(text) > 110:
            lines.append(line)
            line = " "
        line += text
    lines.append(line)
    body = "\n".join(lines)
    return f"const {kind} {name}[] = {{\n{body}\n}};\nconst size_t {name}Size = std::size({name});\n"


def write(name, header, *arrays):
    text = f"""// Made by tools/tables/unicode_tables.py from the Unicode Character Database {VERSION}; do not edit.
// clang-format off
#include "data/bpe/{header}"

#include <iterator>

namespace moebius::data {{

{chr(10).join(arrays)}
}}  // namespace moebius::data
"""
    (ROOT / "src/data/bpe" / name).write_text(text, encoding="utf-8")


def main():
    assert unicodedata2.unidata_version == VERSION, unicodedata2.unidata_version
    number = {name: i for i, name in enumerate(CATEGORIES)}
    categories = [code << 5 | number[value]
                  for code, value in changes(lambda code: unicodedata2.category(chr(code)))]
    classes = [code << 8 | value for code, value in changes(combining_class)]
    pairs = [code | first << 21 | second << 42 | composes << 63 for code, first, second, composes in decompositions()]
    write("category_data.cpp", "category_data.h", array("uint32_t", "kCategoryChanges", categories))
    write("normal_form_data.cpp", "normal_form_data.h", array("uint32_t", "kCombiningClassChanges", classes),
          array("uint64_t", "kDecompositions", pairs))


if __name__ == "__main__":
    main()
