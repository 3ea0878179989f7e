"""Plots of results.json, as SVG and PNG. Run by the Python that has matplotlib: `plot.py RESULTS FOLDER`."""

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {"immich-backup": "#3f6fd8"}
OTHER, BARE = "#b9bfca", "#7c8797"
TITLES = {
    "first": "first backup",
    "again": "again, nothing changed",
    "changed": "again, 1 % changed",
    "verify": "verify",
    "read": "verify, reading",
    "restore": "restore",
}
COLUMNS = {"wall": "seconds", "cpu": "CPU seconds"}


def main():
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    data = json.loads(source.read_text())
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False})
    for workload, place in dict.fromkeys((row["workload"], row["place"]) for row in data["rows"]):
        rows = [row for row in data["rows"] if (row["workload"], row["place"]) == (workload, place)]
        draw(rows, f"{data['about']['workloads'][workload]} – {place}", folder / f"{workload}-{place}")


def draw(rows, title, path):
    works = [work for work in TITLES if any(row["work"] == work for row in rows)]
    heights = [len({row["tool"] for row in rows if row["work"] == work}) + 1.2 for work in works]
    figure, axes = plt.subplots(
        len(works), len(COLUMNS), figsize=(10, 0.6 + 0.28 * sum(heights)), squeeze=False, gridspec_kw={"height_ratios": heights}, layout="constrained"
    )
    figure.suptitle(title, fontsize=11)
    for work, line in zip(works, axes):
        for (column, unit), axis in zip(COLUMNS.items(), line):
            bars(axis, [row for row in rows if row["work"] == work], column)
            axis.set_title(f"{TITLES[work]}, {unit}", fontsize=9, loc="left")
        line[1].set_yticklabels([])
    for ending in ["svg", "png"]:
        figure.savefig(f"{path}.{ending}", dpi=150, metadata={"Date": None} if ending == "svg" else None)
    plt.close(figure)


def bars(axis, rows, column):
    """One bar a program, the fastest by time on top, with the lowest and the highest round."""
    by_tool = {}
    for row in rows:
        by_tool.setdefault(row["tool"], []).append(row)
    tools = sorted(by_tool, key=lambda tool: -statistics.median(row["wall"] for row in by_tool[tool]))
    for place, tool in enumerate(tools):
        values = [row[column] for row in by_tool[tool]]
        middle = statistics.median(values)
        color = COLORS.get(tool, BARE if tool.startswith("bare") else OTHER)
        axis.barh(place, middle, color=color, height=0.7, xerr=[[middle - min(values)], [max(values) - middle]], ecolor="#333333", capsize=2)
        axis.text(max(values), place, f"  {middle:.2f}", va="center", fontsize=8)
    axis.set_yticks(range(len(tools)), tools)
    axis.margins(x=0.14)
    axis.tick_params(length=0)


main()
