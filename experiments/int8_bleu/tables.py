"""Tables of the experiment, from the files that run.py has left: FORM-SEED/ARM-BITS.json, .parts and .text.*."""
import json
import math

RESAMPLES = 1000


def paired(parts, others):
    """Difference of mean losses per token and its standard error over the documents (ratio estimate)."""
    if [part["tokens"] for part in parts] != [part["tokens"] for part in others]:
        raise ValueError("the two evaluations are of different texts")
    sums, counts = [a["loss"] - b["loss"] for a, b in zip(parts, others)], [part["tokens"] for part in parts]
    mean, n = sum(sums) / sum(counts), len(sums)
    squares = sum((s - c * mean) ** 2 for s, c in zip(sums, counts))
    return mean, math.sqrt(squares * n / (n - 1)) / sum(counts)


class Bleu:
    """BLEU of a corpus and of resamples of it, from sacrebleu's counts of each sentence."""

    def __init__(self, references):
        import numpy
        import sacrebleu
        self.numpy, self.metric, self.references = numpy, sacrebleu.metrics.BLEU(), references
        self.draws = numpy.random.default_rng(1).integers(0, len(references), (RESAMPLES, len(references)))

    def counts(self, lines):
        # Columns: length of the hypothesis and of the reference, matches of 1 to 4 words, such groups at all.
        return self.numpy.array(self.metric._extract_corpus_statistics(lines, [self.references]), dtype=float)

    def of(self, sums):
        numpy = self.numpy
        length, reference, matches, groups = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
        with numpy.errstate(divide="ignore", invalid="ignore"):
            precision = numpy.log(matches / groups).mean(-1)
            brevity = numpy.minimum(1 - reference / length, 0)
            return numpy.nan_to_num(100 * numpy.exp(precision + brevity), nan=0.0)

    def check(self, lines, counts):
        own, theirs = float(self.of(counts.sum(0))), self.metric.corpus_score(lines, [self.references]).score
        # sacrebleu smooths counts of 0, which only a text that nobody would score has.
        if own > 0.1 and abs(own - theirs) > 1e-6:
            raise ValueError(f"BLEU of the counts is {own}, that of sacrebleu {theirs}")

    def scores(self, lines):
        """Of all lines, and of each resample."""
        counts = self.counts(lines)
        resampled = self.numpy.stack([counts[draw].sum(0) for draw in self.draws])
        return float(self.of(counts.sum(0))), self.of(resampled), counts


def rows_of(out, form, with_bleu):
    """One row for each seed and arm."""
    references = (out / "references.txt").read_text(encoding="utf-8").splitlines()
    try:
        bleu = Bleu(references) if with_bleu else None
    except ImportError:
        bleu = None
    rows = []
    # Where the losses of the pairs have stayed on another machine, what was made of them there.
    known = out / f"{form}.rows.json"
    known = {(row["seed"], row["arm"], row["bits"]): row for row in json.loads(known.read_text())} \
        if known.exists() else {}
    for folder in sorted(out.glob(f"{form}-*")):
        if not (folder / "F1-control.json").exists():
            continue
        read_parts = lambda name: [json.loads(line) for line in (folder / f"{name}.parts").read_text().splitlines()]
        read_text = lambda name, beam: [line.strip() for line in (folder / f"{name}.text.{beam}").read_text(
            encoding="utf-8").split("\n")[:-1]]
        control = read_parts("F1-control") if (folder / "F1-control.parts").exists() else None
        has_text = (folder / "F1-control.text.1").exists()
        base = {beam: read_text("F1-control", beam) for beam in (1, 4)
                if (folder / f"F1-control.text.{beam}").exists()}
        scored = {beam: bleu.scores(lines) for beam, lines in base.items()} if bleu else {}
        for beam, (_, _, counts) in scored.items():
            bleu.check(base[beam], counts)
        for result in sorted(folder.glob("*.json")):
            said = json.loads(result.read_text())
            arm, _, bits = result.stem.rpartition("-") if result.stem[0] != "F" else (result.stem, "", "0")
            row = dict(seed=int(folder.name.rpartition("-")[2]), arm=arm, bits=int(bits), loss=said["loss"])
            if control is None:
                row.update(known[(row["seed"], row["arm"], row["bits"])])
            else:
                row["difference"], row["error"] = paired(read_parts(result.stem), control)
            for key in ("same_token", "flipped_decisions", "flipped_tokens"):
                if key in said.get("quantised", {}):
                    row[key] = said["quantised"][key]
            if "quantised" in said:
                row["cost"] = said["quantised"]["difference"]
            for beam in base:
                if not has_text or not (folder / f"{result.stem}.text.{beam}").exists():
                    continue
                lines = read_text(result.stem, beam)
                row[f"identical_{beam}"] = sum(a == b for a, b in zip(lines, base[beam])) / len(lines)
                if bleu:
                    score, resampled, _ = bleu.scores(lines)
                    row[f"bleu_{beam}"] = score
                    if scored[beam][0] > 0:
                        row[f"relative_{beam}"] = 100 * (score / scored[beam][0] - 1)
                    row[f"not_below_{beam}"] = float((resampled >= scored[beam][1]).mean())
            rows.append(row)
    return rows


def mean_and_error(values):
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def write_tables(out, form, what, with_bleu=True):
    """rows.json with every row, tables.md with means over the seeds; returns the latter."""
    rows = rows_of(out, form, with_bleu)
    (out / f"{form}.rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = ["| bits | arm | seeds | loss | against control | own cost | BLEU | relative | not below control | beam 4 "
             "| relative | same output | same token | other experts | what |", "|" + "---|" * 15]
    groups = {}
    for row in rows:
        groups.setdefault((-row["bits"] if row["bits"] else -99, row["arm"]), []).append(row)
    for (bits, arm), group in sorted(groups.items()):
        def cell(key, form_, factor=1.0, with_error=True):
            values = [factor * row[key] for row in group if key in row]
            if not values:
                return ""
            mean, error = mean_and_error(values)
            if not with_error:
                return form_.format(mean)
            return form_.format(mean) + (f" ± {error:.2g}" if error is not None else "")
        difference, error = mean_and_error([row["difference"] for row in group])
        error = group[0]["error"] if error is None else error  # of one seed: over the sentence pairs
        lines.append(" | ".join([
            f"| {-bits if bits != -99 else 'float'}", arm, str(len(group)), cell("loss", "{:.4f}", with_error=False),
            f"{difference:+.5f} ± {error:.5f}", cell("cost", "{:+.5f}", with_error=False),
            cell("bleu_1", "{:.2f}", with_error=False),
            cell("relative_1", "{:+.2f} %"), cell("not_below_1", "{:.2f}", with_error=False),
            cell("bleu_4", "{:.2f}", with_error=False), cell("relative_4", "{:+.2f} %"),
            cell("identical_1", "{:.1f} %", 100, False), cell("same_token", "{:.2f} %", 100, False),
            cell("flipped_decisions", "{:.2f} %", 100, False), what.get(arm, "")]) + " |")
    text = "\n".join(lines) + "\n"
    (out / f"{form}.tables.md").write_text(text)
    return text
