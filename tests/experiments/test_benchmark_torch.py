"""The comparison with PyTorch; the PyTorch program itself only where PyTorch is installed."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import common
from experiments.benchmark_torch import (
    TorchProcess,
    describe,
    num_parameters,
    take_turns,
    torch_sizes,
)
from worldmodels_jax.training.parts import build


def test_programs_take_turns_and_the_first_round_does_not_count() -> None:
    clock, calls = itertools.count(1), []

    def timer(program: str) -> Callable[[str], float]:
        def call(part: str) -> float:
            calls.append((program, part))
            return float(next(clock))

        return call

    rows = {"x": {"a": ("p",), "b": ("p",)}, "both": {"a": ("p", "q"), "b": ("q", "p")}}
    seconds = take_turns({"a": timer("a"), "b": timer("b")}, rows, 2)
    assert calls == [("a", "p"), ("b", "p"), ("a", "q"), ("b", "q")] * 3
    # The second round's calls take 5, 6, 7 and 8 s, the third's 9 to 12.
    assert seconds == {
        "x": {"a": [5, 9], "b": [6, 10]},
        "both": {"a": [12, 20], "b": [14, 22]},
    }


def test_sizes_are_those_of_the_preset() -> None:
    config = common.make_config("debug", {"model.prior": "mlp"})
    parts = build(config)
    sizes = torch_sizes(config, parts.spec)
    assert parts.spec.observation_shape == (10, 5, 1)
    assert sizes["image"] == (12, 8, 1)  # as the encoder pads it for two halvings
    assert sizes["dreams"] == config.training.dream_batch
    assert sizes["channels"] == config.model.channels


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("dreamer_v3_catch", {}, "is no STORM: choose one such as atari100k"),
        ("debug", {"training.dream_starts": "2"}, "dream_starts=2"),
        ("debug", {"model.mixer": "concat_attention"}, "mixer concat only"),
    ],
)
def test_what_the_other_program_is_not_is_refused(
    preset: str, overrides: dict[str, str], message: str
) -> None:
    config = common.make_config(preset, overrides)
    with pytest.raises(ValueError, match=message):
        torch_sizes(config, build(config).spec)


def test_an_interpreter_without_pytorch_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="--torch_python=/no/such/python does not run"):
        TorchProcess("/no/such/python", {}, {})
    # Not the sizes it wants, so it ends with or without PyTorch.
    with pytest.raises(ValueError, match="name an interpreter that has PyTorch"):
        TorchProcess(sys.executable, {}, {})
    assert "Error" in capfd.readouterr().err


def test_a_program_that_ends_early_is_told(tmp_path: Path) -> None:
    # An interpreter that announces itself, times one part and ends.
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho \'{"version": "2.0"}\'\nread part\necho 2.5 1.25\n')
    program.chmod(0o755)
    process = TorchProcess(str(program), {}, {})
    assert process.about == {"version": "2.0"}
    assert process.cpu_seconds("dreams") == 1.25
    with pytest.raises(ValueError, match="ended in its world-model update"):
        process.cpu_seconds("world-model update")
    process.close()


def test_the_table_tells_medians_and_quartiles() -> None:
    result = {
        "machine": {"cores": 1, "jax": "0.10.2", "matmul_ceiling": 1e11},
        "torch": "2.0",
        "parameters": {"ours": {"actor": 1000}, "PyTorch": {"actor": 1000}},
        "seconds": {"dreams": {"ours": [1.0, 2.0, 3.0], "PyTorch": [4.0, 6.0, 9.0]}},
        "ratios": {"dreams": {"PyTorch": [3.0, 3.25, 3.5]}},
    }
    lines = describe(result).splitlines()
    assert lines[1].split() == ["dreams", "2", "6", "3.25", "[3.00,", "3.50]"]
    assert "100 GFLOP/s" in lines[2]
    assert lines[3] == "Parameters: ours actor 1,000; PyTorch actor 1,000"


def test_pytorch_trains_as_many_parameters_on_the_same_shapes() -> None:
    pytest.importorskip("torch")
    from experiments.torch_storm import AgentStep, Sizes

    config = common.make_config("debug", {"model.prior": "mlp"})
    parts = build(config)
    step = AgentStep(Sizes(**torch_sizes(config, parts.spec)))
    assert step.parameters() == num_parameters(parts)
    before = [p.detach().clone() for p in step.model.parameters()]
    step.world_model()
    assert any((a != b).any() for a, b in zip(before, step.model.parameters(), strict=True))
    features, action, reward, end = step.dreams()
    t = config.training
    assert features.shape[:2] == (t.dream_batch, t.horizon + 1)
    assert action.shape == reward.shape == end.shape == (t.dream_batch, t.horizon)
    step.actor_critic()
