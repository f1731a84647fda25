"""NowcastingGPT on simulated rain, with and without the extreme value loss: checked and reported.

  python -m experiments.nowcasting_acceptance --out=results/nowcasting

Trains the preset nowcasting_gpt without the loss, and with it for each of --heads and --scales,
three seeds each, and scores them beside Eulerian and Lagrangian persistence. Writes
``acceptance.json`` and ``acceptance.md``; runs are kept in --runs, and what was trained there is
not trained again. That trained models beat Eulerian persistence, at the longest lead time and in
the mean over lead times, and that Lagrangian persistence does, is checked; what the extreme value
loss changes is told with intervals, not checked: the published margins are small.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from scipy import stats

from experiments import acceptance, common
from experiments.configs.nowcasting import nowcasting_gpt
from experiments.nowcast import evaluate_run
from worldmodels_jax.models.nowcasting_config import NowcastingLossConfig
from worldmodels_jax.training.data_config import load_data
from worldmodels_jax.training.fit_config import FitConfig, PartTraining

# Name -> what of the loss goes with it: Nuwa-EVL's index is 2; means over the extremes and over the
# rest, in place of the mean over all, weigh the few extremes among tokens as much as the others.
HEADS: dict[str, dict[str, Any]] = {
    "frame_vit": {"head": "frame_vit"},
    "frame_vit_forecast": {"head": "frame_vit_forecast"},
    "token_table": {"head": "token_table"},
    "token_table_class_mean": {"head": "token_table", "reduction": "class_mean"},
    "fixed_tokens": {"head": "fixed_tokens", "gamma": 2.0},
}
SCALES = (0.5, 2.0)
WITHOUT = "no_evl"
PERSISTENCE = ("eulerian_persistence", "lagrangian_persistence")
SCORES = ("pcc", "mse", "csi_1mm", "csi_2mm")
AREAS = ("roc_auc", "pr_auc")
_TABLE_SHARE = 8  # of the transformer's updates, the first that codes of extremes are chosen in

Row = dict[str, float | None]  # None where a score is not defined
Table = Mapping[str, Sequence[Row]]  # variant -> a row a seed


class Variant(NamedTuple):
    """One of ``HEADS`` and the weight of the extreme value loss."""

    head: str
    scale: float

    @property
    def name(self) -> str:
        """For tables and directories."""
        return f"{self.head}_{self.scale:g}"


def with_evl(config: FitConfig, variant: Variant) -> FitConfig:
    """A preset with the extreme value loss.

    Fixed tokens are chosen in the first updates of the transformer, then kept.

    Args:
      config: of ``nowcasting_gpt``.
      variant: what is added.
    """
    parts: Any = config.parts
    changes = HEADS[variant.head] | {"evl_scale": variant.scale}
    start, stop = parts.transformer.start, 0
    if variant.head == "fixed_tokens":
        stop = start + max(1, (config.training.steps - start) // _TABLE_SHARE)
    head = PartTraining(lr=1e-3, decay=0.01, start=start, stop=stop)
    return dataclasses.replace(
        config,
        loss=NowcastingLossConfig(evl=True, **changes),
        parts=dataclasses.replace(parts, head=head),
    )


def row_of(result: Mapping[str, Any], name: str) -> Row:
    """The numbers of a report on a forecast: means over lead times, and those of the longest.

    Args:
      result: of ``evaluate_run``.
      name: of the forecast.
    """
    scores, found = result["scores"][name], result["detection"][name]
    row: Row = {}
    for score in SCORES:
        row[score], row[f"{score}_last"] = _mean(scores[score]), scores[score][-1]
    return row | {area: found[area] for area in AREAS}


def check(table: Table) -> dict[str, dict[str, Any]]:
    """The claims, each with the numbers that decide: all must be above 0.

    Args:
      table: of the variants and of both kinds of persistence.

    Returns:
      claim -> ``passed`` and ``values``.
    """

    def gains(name: str, suffix: str = "_last") -> dict[str, np.ndarray]:
        mse, pcc = (
            _column(table[name], column) - _column(table[PERSISTENCE[0]], column)
            for column in (f"mse{suffix}", f"pcc{suffix}")
        )
        return {"MSE": -mse, "PCC": pcc}

    claims = {}
    for name in table:
        if name not in PERSISTENCE:
            for score, values in gains(name).items():
                claims[f"{name} beats Eulerian persistence in {score} at the longest lead"] = values
            for score, values in gains(name, "").items():
                claims[f"{name} beats Eulerian persistence in mean {score}"] = values
    for score, values in gains(PERSISTENCE[1], "").items():
        claims[f"Lagrangian persistence beats Eulerian in mean {score}"] = values
    return {
        claim: {
            "passed": bool((values > 0).all()),
            "values": values.round(4).tolist(),
        }
        for claim, values in claims.items()
    }


def differences(table: Table) -> dict[str, dict[str, list[float | None]]]:
    """What the extreme value loss changes: mean over seeds and the ends of a 95 % interval of it.

    Seeds are paired, the interval is Student's; with one seed there is none.

    Args:
      table: of the variants, ``WITHOUT`` among them.

    Returns:
      variant -> score -> (mean, low, high).
    """
    out: dict[str, dict[str, list[float | None]]] = {}
    for name, rows in table.items():
        if name == WITHOUT or name in PERSISTENCE:
            continue
        out[name] = {}
        for score in (*SCORES, *AREAS):
            values = _column(rows, score) - _column(table[WITHOUT], score)
            mean = float(values.mean())
            half = np.nan
            if len(values) > 1:
                half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1)
                half = float(half / np.sqrt(len(values)))
            ends = (mean, mean - half, mean + half)
            out[name][score] = [None if np.isnan(x) else round(x, 4) for x in ends]
    return out


def report(result: Mapping[str, Any]) -> str:
    """The report in Markdown.

    Args:
      result: what ``acceptance.json`` holds.
    """
    columns = (*SCORES, *AREAS)
    lines = [
        "# NowcastingGPT on simulated rain",
        "",
        f"Means over seeds {', '.join(map(str, result['seeds']))}; {result['steps']:,} updates; "
        f"{result['protocol']['events']} test events, means of {result['protocol']['members']} "
        "members; scores are means over lead times, in brackets those of the longest; counts are "
        "pooled over events. Areas are of extremes of "
        f"{result['protocol']['threshold_mm_3h']:g} mm in 3 hours.",
        "",
        "| forecast | " + " | ".join(columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name, rows in result["rows"].items():
        cells = []
        for column in columns:
            cell = _number(_mean([row[column] for row in rows]))
            if column in SCORES:
                cell += f" ({_number(_mean([row[f'{column}_last'] for row in rows]))})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += acceptance.claims_table(result["claims"], "gain, each seed")
    if result["differences"]:
        lines += [
            "",
            "What the extreme value loss changes (95 % interval over seeds), not checked:",
            "",
            "| variant | " + " | ".join(columns) + " |",
            "|---" * (1 + len(columns)) + "|",
        ]
        for name, scores in result["differences"].items():
            cells = [_interval(scores[column]) for column in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    """A score of each seed, NaN where it is not defined."""
    return np.array([row[name] for row in rows], np.float64)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(values: Sequence[float | None]) -> str:
    mean, low, high = values
    if mean is None:
        return "-"
    return f"{mean:+.3f}" if low is None else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def accept(
    out: Path,
    runs: Path,
    *,
    num_seeds: int = 3,
    heads: Collection[str] = tuple(HEADS),
    scales: Sequence[float] = SCALES,
    members: int = 5,
    change: Callable[[FitConfig], FitConfig] = lambda config: config,
) -> dict[str, Any]:
    """Train, evaluate, check; writes ``acceptance.json`` and ``acceptance.md``.

    Args:
      out: directory of the two files.
      runs: directory of the runs, one a variant.
      num_seeds: S, from 0, trained at once.
      heads: of the extreme value loss; none for the model without it alone.
      scales: weights of the loss.
      members: forecasts of an event.
      change: of the preset, to train less.

    Returns:
      What ``acceptance.json`` holds.
    """
    base = change(nowcasting_gpt())
    variants = [Variant(head, scale) for head in heads for scale in scales]
    configs = {WITHOUT: base} | {each.name: with_evl(base, each) for each in variants}
    data = load_data(base.data, None)
    rows: dict[str, list[Row]] = {name: [] for name in (*PERSISTENCE, *configs)}
    results: dict[str, list[Any]] = {}

    def evaluate(run: Any) -> dict[str, Any]:
        return evaluate_run(run.system, run.variables, data, members=members, seed=run.seed)

    for name, config in configs.items():
        results[name] = acceptance.fit_and_evaluate(config, runs / name, data, num_seeds, evaluate)
        for found in results[name]:
            rows[name].append(row_of(found, "model_mean"))
            if name == WITHOUT:
                for simple in PERSISTENCE:
                    rows[simple].append(row_of(found, simple))
        told = ", ".join(f"{score} {_number(value)}" for score, value in rows[name][0].items())
        print(f"{name}, seed 0: {told}", flush=True)
    result = {
        "seeds": list(range(num_seeds)),
        "steps": base.training.steps,
        "protocol": results[WITHOUT][0]["protocol"],
        "rows": rows,
        "claims": check(rows),
        "differences": differences(rows),
        "results": results,
        "losses": {name: dataclasses.asdict(config.loss) for name, config in configs.items()},
    }
    acceptance.write_report(out, result, report(result))
    return result


def chosen_heads(given: Sequence[str]) -> Sequence[str]:
    """The heads that ``--heads`` asks for.

    Args:
      given: names, or "none" alone.

    Raises:
      ValueError: for another name, naming it.
    """
    if list(given) == ["none"]:
        return []
    for head in given:
        if head not in HEADS:
            raise ValueError(
                f"--heads={','.join(given)}: {head} is none of {', '.join(HEADS)}; or give "
                "--heads=none alone."
            )
    return given


def main(overrides: dict[str, str]) -> None:
    """Run it."""
    del overrides
    given = flags.FLAGS
    accept(
        Path(given.out),
        Path(given.runs),
        num_seeds=given.seeds,
        heads=chosen_heads(given.heads),
        scales=[float(scale) for scale in given.scales],
        members=given.members,
    )


if __name__ == "__main__":
    acceptance.define_flags("nowcasting")
    flags.DEFINE_integer("members", 5, "Forecasts of an event.", lower_bound=1)
    flags.DEFINE_list("heads", list(HEADS), "Heads of the loss to train; none for no such loss.")
    flags.DEFINE_list("scales", ["0.5", "2"], "Weights of the extreme value loss.")
    common.run_app(main)
