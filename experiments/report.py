"""Compare runs over seeds and environments, with each other and with what was published.

  python -m experiments.report runs/pong runs/boxing --out=runs/report
  python -m experiments.report results
  python -m experiments.report

Takes directories of runs, evaluation.json files, or directories that hold several; without any it
shows the published tables alone. Statistics are those of rliable (Agarwal et al. 2021): mean,
median, interquartile mean, optimality gap, performance profiles, probability of improvement, with
stratified bootstrap 95 % intervals over seeds. Atari 100k and DeepMind Control are normalised and
set beside the published columns; other environments are normalised from the random policy to a
reference. Writes report.md, report.json and PNG figures. Evaluations of different protocols are
refused.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import common
from experiments.collect import Evaluation, collect, different_protocols, different_settings
from experiments.report_statistics import (
    OTHER,
    PAPER,
    Section,
    as_json,
    baseline,
    benchmark_of,
    benchmarks,
    other_environments,
    published_benchmark,
)
from experiments.report_text import describe
from worldmodels_jax.evaluation.published import video_prediction
from worldmodels_jax.files import replacing
from worldmodels_jax.viz.scores import plot_aggregates, plot_improvement, plot_profiles


def make_report(
    paths: Sequence[Path],
    out: Path,
    *,
    labels: Sequence[str] | None = None,
    references: Mapping[str, float] | None = None,
    mix_protocols: bool = False,
    repetitions: int = 2000,
) -> str:
    """Read evaluations, compute, write ``report.md``, ``report.json`` and figures.

    Args:
      paths: run directories, evaluation files, or directories that hold several; none for the
        published tables alone.
      out: directory to write into.
      labels: of the systems, one a path; by default made of the runs' configs.
      references: environment -> mean return that is 1 when normalised, for environments without
        published columns.
      mix_protocols: compare evaluations of different protocols, and say so in the report.
      repetitions: bootstrap resamples per interval.

    Returns:
      The text of ``report.md``.

    Raises:
      ValueError: no or damaged evaluations; different protocols; labels or references that do not
        fit.
    """
    evaluations = collect(paths, labels)
    by_benchmark: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_benchmark.setdefault(benchmark_of(evaluation.environment), []).append(evaluation)
    references = references or {}
    others = {e.environment for e in by_benchmark.get(OTHER, [])}
    if unused := sorted(set(references) - others):
        raise ValueError(
            f"--references={unused[0]}={references[unused[0]]:g} is for no environment that needs "
            f"one: those are {', '.join(sorted(others)) or 'none'}."
        )
    notes = []
    if different := different_settings(evaluations):
        notes.append(f"Pooled by --labels: {different}.")
    for key, group in sorted(by_benchmark.items()):
        if different := different_protocols(group):
            if not mix_protocols:
                raise ValueError(
                    f"{different}: evaluate them alike (python -m experiments.evaluate), or pass "
                    "--mix_protocols to compare them all the same."
                )
            notes.append(f"Mixed protocols ({key}): {different}.")
    sections = [
        other_environments(group, references, repetitions)
        if key == OTHER
        else published_benchmark(key, group, repetitions)
        for key, group in sorted(by_benchmark.items())
    ] or [baseline(key, repetitions) for key in benchmarks()]
    figures = {section.key: draw(section, out) for section in sections}
    content: dict[str, Any] = {
        "notes": notes,
        "repetitions": repetitions,
        "evaluations": [_as_json(evaluation) for evaluation in evaluations],
        "benchmarks": {section.key: as_json(section, repetitions) for section in sections},
        "figures": figures,
    }
    if not evaluations:
        content["video_prediction"] = [
            {"task": task, "system": system, **values}
            for suite in ("atari", "dmc")
            for (task, system), values in video_prediction(suite).items()
        ]
    text = describe(content)
    for name, what in (("report.json", json.dumps(content, indent=2) + "\n"), ("report.md", text)):
        with replacing(out / name) as temporary:
            temporary.write_text(what)
    return text


def draw(section: Section, out: Path) -> list[str]:
    """Draw a section's figures.

    Returns:
      Their names in ``out``; none where there is nothing aggregated.
    """
    comparison = section.comparison
    if comparison is None:
        return []
    bold = list(section.ours) or [PAPER]
    title = f"{section.title} (environments: {len(section.shared)})"
    names = {what: f"{section.key}_{what}.png" for what in ("aggregates", "profiles")}
    plot_aggregates(
        out / names["aggregates"],
        comparison.aggregates,
        printed=section.printed,
        bold=bold,
        title=title,
    )
    plot_profiles(
        out / names["profiles"],
        comparison.thresholds,
        comparison.profiles,
        xlabel="normalised score",
        bold=bold,
        title=title,
    )
    if comparison.improvement:
        names["improvement"] = f"{section.key}_improvement.png"
        plot_improvement(out / names["improvement"], comparison.improvement, title=title)
    return list(names.values())


def parse_references(pairs: Sequence[str]) -> dict[str, float]:
    """``["Catch-bsuite=1"] -> {"Catch-bsuite": 1.0}``.

    Raises:
      ValueError: a pair without a number.
    """
    references = {}
    for pair in pairs:
        name, equals, value = pair.rpartition("=")
        try:
            references[name] = float(value)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise ValueError(
                f"--references={pair} is no environment and score: write for instance "
                "--references=Catch-bsuite=1,Breakout-MinAtar=30."
            )
    return references


def main(overrides: dict[str, str], arguments: list[str]) -> None:
    """Report, print, say where."""
    del overrides
    given = flags.FLAGS
    out = Path(given.out)
    text = make_report(
        [Path(argument) for argument in arguments],
        out,
        labels=given.labels or None,
        references=parse_references(given.references),
        mix_protocols=given.mix_protocols,
        repetitions=given.repetitions,
    )
    print(text)
    print(f"Wrote {out / 'report.md'}, {out / 'report.json'} and the figures beside them")


def _as_json(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "file": str(evaluation.path),
        "system": evaluation.system,
        "preset": evaluation.preset,
        "environment": evaluation.environment,
        "seeds": sorted(evaluation.means),
        "protocol": dict(evaluation.protocol),
    }


if __name__ == "__main__":
    # Only here: other programs have flags of these names, and a test may import them all.
    flags.DEFINE_string("out", "runs/report", "Directory the report is written into.")
    flags.DEFINE_list(
        "labels", [], "Names of the systems, one for each path; by default from the configs."
    )
    flags.DEFINE_list(
        "references", [], "ENVIRONMENT=SCORE: the mean return that is 1 when normalised."
    )
    flags.DEFINE_bool("mix_protocols", False, "Compare evaluations of different protocols.")
    flags.DEFINE_integer("repetitions", 2000, "Bootstrap resamples per interval.", lower_bound=1)
    common.run_app(main, positional=True)
