"""The entry points in this process: cases for which a program each would take too long."""

import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from experiments import common, evaluate, imagine
from experiments import train as train_program

WITHOUT_UPDATES = [
    *["--config.training.world_model_ratio=0", "--config.training.agent_ratio=0"],
    *["--config.training.steps=80", "--config.training.evaluation_episodes=2"],
]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., object]]:
    """``(program, *arguments) -> exit code``, which is the message where there is one."""
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", None)

    def run(program: Callable[[dict[str, str]], None], *arguments: str) -> object:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit) as stopped:
            common.run_app(program, fields=program is train_program.main)
        return stopped.value.code

    with flagsaver.flagsaver():
        yield run
        flags.FLAGS.unparse_flags()
    flags.FLAGS.mark_as_parsed()


def test_several_seeds_are_evaluated_each_and_compared(
    start: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["--config=debug", f"--run={run}", "--seed=7", "--seeds=2", *WITHOUT_UPDATES]
    assert start(train_program.main, *arguments) is None
    result = json.loads((run / "evaluation.json").read_text())
    assert result["seeds"] == [7, 8]
    assert result["episodes"] == 4
    assert [len(returns) for returns in result["returns"]] == [2, 2]
    means = {str(seed): sum(r) / 2 for seed, r in zip((7, 8), result["returns"], strict=True)}
    assert result["per_seed"] == means
    assert result["mean"] == pytest.approx(sum(means.values()) / 2)
    assert result["mean_length"] == 9
    assert result["protocol"]["episodes_per_seed"] == 2
    assert "seeds [7, 8]" in capsys.readouterr().out
    with Image.open(run / "dream.gif") as image:
        assert image.n_frames == 10  # an episode of Catch; the position table would hold 16
    assert (run / "learning_curve.png").exists()

    earlier = (run / "dream.gif").read_bytes()
    assert start(imagine.main, f"--run={run}", "--trained_seed=8", "--dream_seed=3") is None
    assert (run / "dream.gif").read_bytes() != earlier
    message = start(imagine.main, f"--run={run}", "--trained_seed=9")
    assert message == f"error: {run} holds seeds 7..8, not seed 9."


def test_vector_observations_have_scores_but_no_pictures(start: Callable, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["--config=debug", f"--run={run}", "--config.env.name=CartPole-v1"]
    arguments += ["--config.env.max_episode_steps=30", *WITHOUT_UPDATES]
    assert start(train_program.main, *arguments) is None
    result = json.loads((run / "evaluation.json").read_text())
    assert 8 <= result["mean"] == result["mean_length"] <= 30
    assert result["protocol"]["max_episode_steps"] == 30
    assert not (run / "dream.gif").exists()
    message = start(imagine.main, f"--run={run}")
    assert message.startswith("error: CartPole-v1 has vector observations of shape (4,)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=ctach"], "unknown preset --config=ctach: choose one of .*, catch, .*, debug"),
        (["--config.training.steps=many"], r"training\.steps='many' is ill-typed; expected int"),
        (["--config.env.name=Ctach-bsuite"], "Catch-bsuite"),
        (["--config.model.prior"], r"--config\.model\.prior has no value; write"),
        (["--config.model.priro=mlp"], r"'model\.priro'; did you mean 'model\.prior'\?"),
        (["--config.model=mlp"], r"'model' is a section"),
        (["--config.training.agent_ratio=inf"], r"training\.agent_ratio=inf is no number"),
        (["--config=atari_cpu", "--config.env.game=Pnog"], "Pong"),
        (["--config=atari_cpu", "--config.env.name=atari/Pong"], r"no config field 'env\.name'"),
        (["--run=."], r"\. exists and holds no run of this library"),
        (["--run=/dev/null"], "/dev/null exists and holds no run of this library"),
        (["--run=/dev/null/run"], "Not a directory: '/dev/null/run"),
    ],
)
def test_a_mistake_is_a_message(
    start: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    code = start(train_program.main, "--config=debug", *arguments)
    assert isinstance(code, str)
    assert code.startswith("error: ")
    assert re.search(message, code), code
    assert "\n" not in code
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sede=3"], "Unknown command line flag 'sede'. Did you mean: seed"),
        (["--seed=-1"], "flag --seed=-1"),
        (["--seeds=0"], "flag --seeds=0"),
        (["stray"], "unexpected arguments: stray"),
    ],
)
def test_a_wrong_flag_shows_no_traceback(
    start: Callable, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert start(train_program.main, *arguments) == 1
    captured = capfd.readouterr()
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err


def test_the_first_signal_asks_and_the_second_ctrl_c_interrupts(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Signals come while a progress bar is being printed: they must not print into it."""

    class Busy:
        def write(self, text: str) -> None:
            raise RuntimeError("reentrant call")

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with common.stop_signals() as should_stop:
        monkeypatch.setattr(sys, "stderr", Busy())
        assert not should_stop()
        signal.raise_signal(signal.SIGTERM)
        assert should_stop()
        signal.raise_signal(signal.SIGTERM)  # impatient schedulers send it again
    with common.stop_signals() as should_stop:
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    monkeypatch.undo()
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    said = capfd.readouterr().err.split("\n")
    assert [line for line in said if line] == [
        f"SIG{name}: saving a checkpoint, then stopping" for name in ("TERM", "TERM", "INT")
    ]


def test_an_interrupted_program_shows_no_traceback(
    start: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    def program(overrides: dict[str, str]) -> None:
        signal.raise_signal(signal.SIGINT)

    assert start(program) == "interrupted"
    assert "Traceback" not in capfd.readouterr().err


def test_a_lost_worker_is_heard_of_and_the_steps_of_a_save_are_not(
    start: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    def program(overrides: dict[str, str]) -> None:
        logging.getLogger("absl").error("step 3 of a save")
        logging.getLogger("worldmodels_jax.envs.host_vector").warning("the worker was killed")

    assert start(program) is None
    assert caplog.messages == ["the worker was killed"]


def test_evaluate_finds_no_run(start: Callable, tmp_path: Path) -> None:
    code = start(evaluate.main, f"--run={tmp_path}")
    assert code.startswith(f"error: {tmp_path} holds no run (no config.json): give --run")
