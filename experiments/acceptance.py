"""What the programs share that train several variants of a system and check claims about them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from worldmodels_jax.data.dataset import Dataset
from worldmodels_jax.files import replacing
from worldmodels_jax.training.fit import fit, load_fit
from worldmodels_jax.training.fit_config import FitConfig
from worldmodels_jax.training.fit_load import LoadedFit


def fit_and_evaluate(
    config: FitConfig,
    directory: Path,
    data: Dataset,
    num_seeds: int,
    evaluate: Callable[[LoadedFit], Any],
) -> list[Any]:
    """Trains seeds 0 to S - 1 of a variant at once, or what is missing of them.

    Args:
      config: of the variant.
      directory: of its run.
      data: the set of ``config.data``.
      num_seeds: S.
      evaluate: what is wanted of the run of a seed.

    Returns:
      What ``evaluate`` said of each seed.
    """
    fit(config, directory, num_seeds=num_seeds, dataset=data)
    return [evaluate(load_fit(directory, seed=seed, dataset=data)) for seed in range(num_seeds)]


def claims_table(claims: Mapping[str, Mapping[str, Any]], values: str) -> list[str]:
    """The lines of a table in Markdown: what held, and by which numbers.

    Args:
      claims: claim -> ``"passed"`` and ``"values"``.
      values: title of the numbers.
    """
    lines = ["", f"| claim | held | {values} |", "|---|---|---|"]
    for claim, outcome in claims.items():
        held = "yes" if outcome["passed"] else "no"
        lines.append(f"| {claim} | {held} | {', '.join(map(str, outcome['values']))} |")
    return lines


def write_report(out: Path, result: Mapping[str, Any], text: str) -> None:
    """Writes ``acceptance.json`` and ``acceptance.md``, and prints the latter.

    Args:
      out: directory of the two files.
      result: JSON values.
      text: of the report.
    """
    contents = {"acceptance.json": json.dumps(result, indent=2) + "\n", "acceptance.md": text}
    for file, content in contents.items():
        with replacing(out / file) as temporary:
            temporary.write_text(content)
    print(text)
    print(f"Wrote {out / 'acceptance.json'} and {out / 'acceptance.md'}")


def define_flags(name: str) -> None:
    """``--out``, ``--runs`` and ``--seeds``.

    Args:
      name: of the experiment, in the directories' defaults.
    """
    flags.DEFINE_string("out", f"results/{name}", "Directory of the report.")
    flags.DEFINE_string("runs", f"runs/{name}_acceptance", "Directory of the runs.")
    flags.DEFINE_integer("seeds", 3, "Seeds, from 0.", lower_bound=1)
