"""Medians, their spread, and whether the bars hold."""

import json
import statistics
from dataclasses import dataclass

from .tools import BARE, WORKS
from .workload import MIB

OURS = "immich-backup"
ANONYMOUS_MAX = 256 * MIB
PLACES = {"directory": "to a directory", "s3": "to S3", "far": "to S3, a round trip of 20 ms away"}


class Results:
    """What was measured: a list of figures, one a round, by workload, place, work and program."""

    def __init__(self):
        self.rows = []

    def add(self, workload, place, work, tool, round_number, figures):
        self.rows.append({"workload": workload, "place": place, "work": work, "tool": tool, "round": round_number, **figures.as_json()})

    def of(self, workload, place, work, tool):
        """By round."""
        wanted = (workload, place, work, tool)
        return {row["round"]: row for row in self.rows if (row["workload"], row["place"], row["work"], row["tool"]) == wanted}

    def tools(self, workload, place, work):
        """In the order in which they were measured first."""
        return list(dict.fromkeys(row["tool"] for row in self.rows if (row["workload"], row["place"], row["work"]) == (workload, place, work)))

    def scenarios(self):
        return list(dict.fromkeys((row["workload"], row["place"]) for row in self.rows))

    def save(self, path, about):
        path.write_text(json.dumps({"about": about, "rows": self.rows}, indent=1) + "\n")


def median(rows, column):
    return statistics.median(row[column] for row in rows.values())


def spread(values, digits):
    values = list(values)
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f}" + (f" ({low:.{digits}f}–{high:.{digits}f})" if len(values) > 1 else "")


def requests(row):
    return sum(row["requests"].values()) if row["requests"] is not None else None


def table(results, workload, place):
    """Markdown, a row for each work and program."""
    to_s3 = place != "directory"
    heads = ["work", "program", "seconds", "on disk", "CPU seconds", "peak anonymous MiB", "read MiB"]
    heads += ["requests", "sent MiB"] if to_s3 else []
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for work, title in WORKS.items():
        for tool in results.tools(workload, place, work):
            rows = results.of(workload, place, work, tool)
            cells = [title, tool, spread((row["wall"] for row in rows.values()), 2)]
            durable = [row["durable"] for row in rows.values() if row["durable"] is not None]
            cells.append(spread(durable, 2) if durable else "")
            cells.append(spread((row["cpu"] for row in rows.values()), 2))
            cells.append(f"{max(row['anonymous'] for row in rows.values()) / MIB:.0f}")
            cells.append(f"{median(rows, 'read') / MIB:.0f}")
            if to_s3:
                cells.append(f"{statistics.median(requests(row) for row in rows.values()):.0f}")
                cells.append(f"{median(rows, 'sent') / MIB:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass
class Bar:
    """What must be shown. `value` is `None` where it was not measured."""

    text: str
    limit: float
    at_most: bool
    value: float | None = None
    low: float = 0.0
    high: float = 0.0
    note: str = ""
    unit: str = ""

    def line(self):
        limit = f"at {'most' if self.at_most else 'least'} {self.limit:g}{self.unit}"
        if self.value is None:
            return f"- {self.text}: {limit}: not measured"
        holds = self.value <= self.limit if self.at_most else self.value >= self.limit
        number = "{:.2f}" if not self.unit or self.unit == " s" else "{:.0f}"
        value, low, high = (number.format(number_) for number_ in (self.value, self.low, self.high))
        return f"- {self.text}: {value}{self.unit} ({low}–{high}{self.note}), {limit}: {'holds' if holds else 'DOES NOT HOLD'}"


class Bars:
    """The bars, from results. A ratio is that of medians; its spread is that of the ratios of single rounds."""

    def __init__(self, results):
        self.results = results

    def ratio(self, text, limit, at_most, over, under, column="wall"):
        """`over` and `under` are workload, place, work, program."""
        mine, theirs = self.results.of(*over), self.results.of(*under)
        bar = Bar(text, limit, at_most)
        both = sorted(mine.keys() & theirs.keys())
        if both:
            columns = column if isinstance(column, tuple) else (column, column)
            single = [mine[number][columns[0]] / theirs[number][columns[1]] for number in both]
            bar.value = median(mine, columns[0]) / median(theirs, columns[1])
            bar.low, bar.high = min(single), max(single)
        return bar

    def best_other(self, workload, place, work, column="wall"):
        """The program, other than ours and those without a repository, whose median is the lowest."""
        others = [tool for tool in self.results.tools(workload, place, work) if tool not in (OURS, "cp", *BARE)]
        return min(others, key=lambda tool: median(self.results.of(workload, place, work, tool), column), default="the best of the others")

    def against_best(self, text, limit, at_most, at, column="wall"):
        best = self.best_other(*at, column)
        pair = ((*at, OURS), (*at, best))
        bar = self.ratio(f"{text} ({best})", limit, at_most, *(pair if at_most else pair[::-1]), column)
        return bar

    def of_column(self, text, limit, at, get, unit):
        bar = Bar(text, limit, True, unit=unit)
        values = [get(row) for row in self.results.of(*at, OURS).values()]
        if values:
            bar.value, bar.low, bar.high = statistics.median(values), min(values), max(values)
        return bar

    def memory(self):
        bar = Bar("peak anonymous memory in all of them", ANONYMOUS_MAX / MIB, True, unit=" MiB")
        values = [row["anonymous"] / MIB for row in self.results.rows if row["tool"] == OURS]
        if values:
            # All of them: the highest counts, not the median.
            bar.value, bar.low, bar.high = max(values), min(values), max(values)
        return bar

    def all(self):
        def ours(*at):
            return (*at, OURS)

        def not_listing(row):
            return sum(count for kind, count in row["requests"].items() if kind != "LIST")

        first, near = ("photos", "s3", "first"), ("photos", "directory", "first")
        return [
            self.ratio("first backup to S3, time / bare loop of puts", 1.1, True, ours(*first), (*first, "bare puts")),
            self.against_best("first backup to S3, time / best of the others", 1.0, True, first),
            self.ratio("first backup to S3, CPU / rclone", 0.25, True, ours(*first), (*first, "rclone"), "cpu"),
            self.ratio("first backup 20 ms away, rclone's time / ours", 2.0, False, ("photos", "far", "first", "rclone"), ours("photos", "far", "first")),
            # Where a disk is written to, until all is on it: some leave that to the kernel.
            self.ratio("first backup to a directory, time / cp by two processes and sync", 1.2, True, ours(*near), (*near, "cp"), "durable"),
            self.against_best("nothing changed in 200,000 files, directory, time / best of the others", 0.2, True, ("tiny", "directory", "again")),
            self.ratio(
                "nothing changed in 200,000 files, time / bare walk", 3.0, True, ours("tiny", "directory", "again"), ("tiny", "directory", "again", "bare walk")
            ),
            self.of_column("nothing changed, S3, requests that are no listing", 10, ("photos", "s3", "again"), not_listing, " requests"),
            self.of_column("nothing changed in 1,000,000 files", 3, ("million", "directory", "again"), lambda row: row["wall"], " s"),
            self.ratio("verify by listing, S3, time / bare listing", 1.3, True, ours("photos", "s3", "verify"), ("photos", "s3", "verify", "bare listing")),
            self.ratio(
                "verify by listing, directory, time / bare listing", 1.3, True, ours("tiny", "directory", "verify"), ("tiny", "directory", "verify", "bare listing")
            ),
            self.against_best("restore from a directory, best of the others' time / ours", 1.5, False, ("photos", "directory", "restore"), "durable"),
            self.against_best("restore from S3, best of the others' time / ours", 1.5, False, ("photos", "s3", "restore"), "durable"),
            self.memory(),
        ]


def markdown(results, about):
    """The whole report."""
    lines = []
    for workload, place in results.scenarios():
        lines += [f"### {about['date']}: {about['workloads'][workload]}, {PLACES[place]}", "", table(results, workload, place), ""]
    if about["quick"]:
        lines += ["**Few and small files, by `--quick`: neither these figures nor the bars mean anything.**", ""]
    lines += ["### The bars", "", *(bar.line() for bar in Bars(results).all()), ""]
    programs = "; ".join(f"{name}: {said}" for name, said in about["versions"].items())
    lines += [f"{about['machine']}. {about['conditions']} Programs: {programs}."]
    return "\n".join(lines) + "\n"
