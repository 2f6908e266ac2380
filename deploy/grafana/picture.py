"""Draws the dashboard from what a Prometheus has, without Grafana.

    python deploy/grafana/picture.py http://127.0.0.1:9090 OUT.png [--minutes 10] [--end UNIX_TIME]

Every panel stands where the dashboard has it, with the curves that its queries give for the minutes before the end, which
is now unless said. It is made for docs/dashboard.png, and to look at a change of the dashboard where no Grafana is. Needs matplotlib.
"""

import argparse
import datetime
import json
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.dates import DateFormatter

DASHBOARD = Path(__file__).parent / "dashboards/realm.json"
POINTS = 200
INK, PAPER, PANEL = "#d8d9da", "#111217", "#181b1f"
INCH = 0.46  # of a row of the grid, which has 24 columns


def ask(prometheus, query, end, seconds):
    step = max(1, seconds // POINTS)
    query = query.replace("$__rate_interval", f"{max(15, 4 * step)}s")
    query = re.sub(r"\$\w+", ".*", query)
    form = urllib.parse.urlencode(dict(query=query, start=end - seconds, end=end, step=step))
    with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{form}") as answer:
        return json.load(answer)["data"]["result"]


def shown(value, unit):
    """A number of an axis, in the panel's unit."""
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    return f"{value / 1e3:.3g} k" if value >= 1e4 else f"{value:.3g}"


def draw(axes, panel, curves):
    axes.set_facecolor(PANEL)
    axes.set_title(panel["title"], loc="left", fontsize=9, color=INK, fontweight="bold")
    defaults = panel["fieldConfig"]["defaults"]
    for legend, labels, values in curves:
        name = re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), legend)
        times = [datetime.datetime.fromtimestamp(at) for at, _ in values]
        axes.plot(times, [float(value) for _, value in values], linewidth=1, label=name.strip())
    axes.set_ylim(bottom=defaults.get("min"), top=defaults.get("max"))
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, defaults.get("unit")))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.tick_params(colors=INK, labelsize=7)
    axes.grid(color=INK, alpha=0.1)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if curves:
        columns = 1 + panel["gridPos"]["w"] // 6
        axes.legend(fontsize=6, ncols=min(3, columns), loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False, labelcolor=INK)


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("prometheus")
    cli.add_argument("out")
    cli.add_argument("--minutes", type=int, default=10)
    cli.add_argument("--end", type=float, default=time.time())
    args = cli.parse_args()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(16, rows * INCH), facecolor=PAPER)
    for panel in panels:
        place = panel["gridPos"]
        left, top, height = place["x"] / 24, 1 - place["y"] / rows, place["h"] / rows
        if panel["type"] == "row":
            figure.text(left + 0.01, top - height * 0.7, panel["title"], color=INK, fontsize=12)
            continue
        width = place["w"] / 24
        axes = figure.add_axes((left + 0.045, top - height * 0.76, width - 0.06, height * 0.62))
        curves = [
            (target["legendFormat"], result["metric"], result["values"])
            for target in panel["targets"]
            for result in ask(args.prometheus, target["expr"], args.end, args.minutes * 60)
        ]
        draw(axes, panel, curves)
    figure.savefig(args.out, dpi=72, facecolor=PAPER)


if __name__ == "__main__":
    main()
