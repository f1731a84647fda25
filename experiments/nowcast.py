"""Evaluate a nowcaster beside persistence: scores over lead times, extremes, a contact sheet.

``experiments.evaluate`` comes here with runs of NowcastingGPT.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax.data.dataset import Dataset
from worldmodels_jax.data.rain import FRAME_MINUTES, RainPhysics
from worldmodels_jax.evaluation.batches import in_batches
from worldmodels_jax.evaluation.forecasts import (
    HOURS,
    Box,
    detect,
    detect_by_probability,
    score_table,
)
from worldmodels_jax.evaluation.nowcast_baselines import (
    Boundary,
    eulerian_persistence,
    lagrangian_persistence,
)
from worldmodels_jax.evaluation.nowcasting import FSS_SIDES
from worldmodels_jax.models.nowcasting_gpt import NowcastingGPT
from worldmodels_jax.training.data_knmi import RadarSource
from worldmodels_jax.training.fit_load import LoadedFit
from worldmodels_jax.types import PyTree
from worldmodels_jax.viz.nowcast import plot_nowcast

_BATCH = 64  # events
_SMALL_SIDES = (1, 2, 4, 8)  # of neighbourhoods, in frames that the published ones do not fit into
_MODEL, _MEMBER = "model_mean", "model_member"
_SHOWN_MEMBERS = 3


def evaluate_run(
    system: NowcastingGPT, variables: PyTree, dataset: Dataset, *, members: int, seed: int
) -> dict[str, Any]:
    """All scores of a trained nowcaster on the test events, and of persistence.

    Args:
      system: the nowcaster.
      variables: what it learned.
      dataset: with "rain", and "accumulation" where the 3 hours are known to 5 minutes.
      members: forecasts of an event; their mean and the first of them are scored.
      seed: of the forecasts.

    Returns:
      JSON values; ``"scores"``: forecast -> score -> a value each lead time.
    """
    rain = np.asarray(dataset.test["rain"])
    context, observed = np.split(rain, [system.context_frames], axis=1)
    made, probability, decoded = _forecast(system, variables, rain, members, seed)
    forecasts = {
        _MODEL: made.mean(1),
        _MEMBER: made[:, 0],
        **persistence(context, observed.shape[1], dataset.source),
    }
    sides = FSS_SIDES if min(rain.shape[2:]) > max(FSS_SIDES) else _SMALL_SIDES
    boxes = catchments(system, dataset)
    threshold = system.event.threshold_mm_3h
    total = dataset.test.get("accumulation")
    detections = {
        name: detect(forecast, observed, boxes, threshold, total)
        for name, forecast in forecasts.items()
    }
    result: dict[str, Any] = {
        "scores": {
            name: {score: _json(values) for score, values in table.items()}
            for name, table in score_table(forecasts, observed, sides=sides).items()
        },
        "detection": {
            name: {field: _json(value) for field, value in found._asdict().items()}
            for name, found in detections.items()
        },
        "tokenizer": {
            "mse": float(((decoded - rain) ** 2).mean()),
            "mae": float(np.abs(decoded - rain).mean()),
        },
        "protocol": {
            "events": len(rain),
            "members": members,
            "seed": seed,
            "undefined_scores": "pooled",
            "threshold_mm_3h": threshold,
            "catchments": len(boxes),
            "accumulation": "frames" if total is None else "5-minute maps",
            "lead_minutes": [FRAME_MINUTES * (i + 1) for i in range(observed.shape[1])],
        },
    }
    if probability is not None:
        box = _region(system, rain.shape)
        roc, precision_recall = detect_by_probability(probability, observed, box, threshold)
        result["detection"]["head"] = {"roc_auc": _json(roc), "pr_auc": _json(precision_recall)}
    return result


def persistence(context: np.ndarray, leads: int, source: Any) -> dict[str, np.ndarray]:
    """The forecasts that need no learning.

    Args:
      context: ``(E, C, H, W)`` mm/h.
      leads: L.
      source: of the data set; simulated rain has a periodic domain.

    Returns:
      name -> ``(E, L, H, W)`` mm/h.
    """
    boundary: Boundary = "periodic" if isinstance(source, RainPhysics) else "open"
    return {
        "eulerian_persistence": eulerian_persistence(context, leads),
        "lagrangian_persistence": lagrangian_persistence(context, leads, boundary),
    }


def catchments(system: NowcastingGPT, dataset: Dataset) -> Mapping[str, Box]:
    """Where extremes are to be detected: the data set's catchments, or the system's region."""
    if isinstance(dataset.source, RadarSource):
        return dataset.source.catchments
    return {"region": _region(system, dataset.test["rain"].shape)}


def describe(result: Mapping[str, Any]) -> str:
    """The result as tables for a terminal: means over lead times, and the longest of them.

    Args:
      result: of ``evaluate_run``.
    """
    scores, protocol = result["scores"], result["protocol"]
    longest = protocol["lead_minutes"][-1]
    lines = [
        f"  {protocol['events']} events, {protocol['members']} members; mean over lead times (at "
        f"+{longest} min); counts pooled over events",
        "  " + f"{'score':<12}" + "".join(f"{name:>24}" for name in scores),
    ]
    for score in scores[_MODEL]:
        cells = (_cell(table[score]) for table in scores.values())
        lines.append("  " + f"{score:<12}" + "".join(f"{cell:>24}" for cell in cells))
    lines.append(
        f"  extremes of {protocol['threshold_mm_3h']:g} mm in {HOURS:g} h, in "
        f"{protocol['catchments']} catchments:"
    )
    for name, found in result["detection"].items():
        lines.append(
            f"    {name:<24} ROC AUC {_number(found['roc_auc'])}  PR AUC {_number(found['pr_auc'])}"
        )
    errors = result["tokenizer"]
    lines.append(f"  tokenizer: MSE {errors['mse']:.3f}, MAE {errors['mae']:.3f}")
    return "\n".join(lines)


def draw(run: LoadedFit, directory: Path) -> list[Path]:
    """Draw the forecasts of the wettest test event, ``nowcast.png``.

    Args:
      run: of a nowcaster.
      directory: of the figure.

    Returns:
      Its path.
    """
    system: Any = run.system
    rain = np.asarray(run.dataset.test["rain"])
    context, observed = np.split(rain, [system.context_frames], axis=1)
    event = int(observed.mean((1, 2, 3)).argmax())
    chosen = slice(event, event + 1)
    made, _, _ = _forecast(system, run.variables, rain[chosen], _SHOWN_MEMBERS, run.seed)
    rows = {"observed": observed[event], "model, mean": made[0].mean(0)}
    rows |= {f"member {i + 1}": member for i, member in enumerate(made[0])}
    names = {"eulerian_persistence": "Eulerian", "lagrangian_persistence": "Lagrangian"}
    simple = persistence(context[chosen], observed.shape[1], run.dataset.source)
    rows |= {names[name]: forecast[0] for name, forecast in simple.items()}
    path = directory / "nowcast.png"
    title = f"{run.config.preset}, seed {run.seed}, step {run.step}: the wettest test event"
    plot_nowcast(path, context[event], rows, minutes=FRAME_MINUTES, title=title)
    return [path]


def _forecast(
    system: NowcastingGPT, variables: PyTree, rain: np.ndarray, members: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Forecasts ``(E, M, L, H, W)``, probabilities of extremes ``(E,)``, reconstructions."""
    shown = system.context_frames
    horizon = rain.shape[1] - shown

    @jax.jit
    def run(rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        context = rows["rain"][:, :shown]
        # One key for a batch, its first event's: those of filled-up rows are not used.
        key = jax.random.fold_in(jax.random.key(seed), rows["number"][0])
        made = system.forecast(variables, context, key, members=members, horizon=horizon)
        out = {
            "forecast": made.swapaxes(0, 1),
            "decoded": system.reconstruct(variables, rows["rain"]),
        }
        if system.extreme_probability is not None:
            # A head that reads the future is shown each member's.
            whole = jax.vmap(lambda future: jnp.concatenate([context, future], 1))(made)
            said = jax.lax.map(lambda x: system.extreme_probability(variables, x), whole)
            out["probability"] = said.mean(0)
        return out

    rows = {"rain": rain, "number": np.arange(len(rain))}
    out = in_batches(run, rows, _BATCH)
    return out["forecast"], out.get("probability"), out["decoded"]


def _region(system: NowcastingGPT, shape: tuple[int, ...]) -> Box:
    if not system.event.region:
        return (0, shape[-1], 0, shape[-2])
    left, right, top, bottom = system.event.region
    return left, right, top, bottom


def _json(values: Any) -> Any:
    """Numbers without NaN, which JSON does not have."""
    array = np.asarray(values, np.float64)
    if array.ndim == 0:
        return None if np.isnan(array) else float(array)
    return [_json(value) for value in array]


def _cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    mean = float(np.mean(known)) if known else None
    return f"{_number(mean)} ({_number(values[-1])})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
