"""The text of a report: what ``report.json`` holds, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

_STATISTICS = {
    "mean": "mean",
    "median": "median",
    "iqm": "IQM",
    "optimality_gap": "optimality gap",
}


def describe(content: Mapping[str, Any]) -> str:
    """The report in Markdown.

    Args:
      content: what ``report.json`` holds.
    """
    lines = ["# Report", ""]
    lines += [f"- {note}" for note in content["notes"]]
    lines += [
        f"- Brackets are 95 % stratified bootstrap intervals over seeds "
        f"({content['repetitions']} resamples); what has one seed has none.",
        "- IQM is the interquartile mean; the optimality gap is what is missing to 1 on average "
        "(lower is better).",
        "",
    ]
    for key, section in content["benchmarks"].items():
        lines += _section(section, content["figures"][key])
    if content["evaluations"]:
        lines += _evaluations(content["evaluations"])
    else:
        lines += _video(content["video_prediction"])
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Mapping[str, Any], figures: Sequence[str]) -> list[str]:
    lines = [f"## {section['title']}", "", f"Normalised: {section['scale']}.", ""]
    lines += [*(f"- {note}" for note in section["notes"]), ""]
    environments = section["environments"]
    if any(row["systems"] for row in environments.values()):
        lines += ["### Mean returns", "", *_own_table(environments), ""]
    if any(row["published"] for row in environments.values()):
        lines += ["### Beside the published columns", "", *_published_table(environments), ""]
    if "aggregates" in section:
        over = section["aggregated_over"]
        count = f"{len(over)} environment{'s' if len(over) > 1 else ''}"
        lines += [f"### Aggregates over {count}", "", *_aggregates(section), ""]
    if pairs := section.get("probability_of_improvement"):
        rows = [[f"{pair['x']} > {pair['y']}", _estimate(pair)] for pair in pairs]
        lines += ["### Probability of improvement", ""]
        lines += [*_table(["a run of the former beats one of the latter", "P"], rows), ""]
    lines += [f"![{name}]({name})" for name in figures]
    return [*lines, ""]


def _own_table(environments: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, row in environments.items():
        one = "" if row["one"] is None else _number(row["one"])
        if row["one_is"]:
            one += f" ({row['one_is']})"
        for system, own in row["systems"].items():
            interval = own["interval_95"]
            rows.append(
                [
                    name,
                    system,
                    ", ".join(own["per_seed"]),
                    _number(own["mean"]),
                    "" if interval is None else f"{_number(interval[0])} to {_number(interval[1])}",
                    _number(own["iqm"]),
                    _number(row["random"]),
                    one or "none",
                    _fraction(own["normalised_mean"]),
                ]
            )
    head = ["environment", "system", "seeds", "mean", "95 % interval", "IQM", "random", "1 is"]
    return _table([*head, "normalised"], rows)


def _published_table(environments: Mapping[str, Any]) -> list[str]:
    first = next(iter(environments.values()))
    ours = list(dict.fromkeys(s for row in environments.values() for s in row["systems"]))
    head = ["task", "0 is", "1 is", *first["published"], *ours]
    rows = [
        [
            row["task"],
            _number(row["zero"]),
            _number(row["one"]),
            *map(_number, row["published"].values()),
            *(_number(row["systems"][s]["mean"]) if s in row["systems"] else "" for s in ours),
        ]
        for row in environments.values()
    ]
    return _table(head, rows)


def _aggregates(section: Mapping[str, Any]) -> list[str]:
    printed = section["printed"]
    rows = []
    for system, statistics in section["aggregates"].items():
        cells = []
        for name in _STATISTICS:
            cell = _estimate(statistics[name])
            if system in printed.get(name, {}):
                cell += f" (printed {printed[name][system]:.3f})"
            cells.append(cell)
        rows.append([system, *cells])
    return _table(["system", *_STATISTICS.values()], rows)


def _evaluations(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            e["system"],
            e["preset"],
            e["environment"],
            str(e["protocol"]["training steps"]),
            ", ".join(
                f"{name}={value}"
                for name, value in e["protocol"].items()
                if name not in ("env", "environment", "training steps")
            ),
            e["file"],
        ]
        for e in evaluations
    ]
    head = ["system", "preset", "environment", "agent steps", "protocol", "file"]
    return ["## Evaluations", "", *_table(head, rows)]


def _video(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["task", "system", "FVD (lower is better)", "perplexity"]
    cells = [[r["task"], r["system"], _number(r["fvd"]), _number(r["perplexity"])] for r in rows]
    return ["## Video prediction, as published", "", *_table(head, cells)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _estimate(estimate: Mapping[str, Any]) -> str:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    shown = [f"{x:.3f}" for x in (value, low, high)]
    return shown[0] if shown[0] == shown[1] == shown[2] else "{} [{}, {}]".format(*shown)


def _number(x: float) -> str:
    """Enough digits to tell returns apart, few enough to read."""
    return f"{x:.0f}" if abs(x) >= 1000 else f"{x:.4g}"


def _fraction(x: float | None) -> str:
    return "none" if x is None else f"{x:.3f}"
