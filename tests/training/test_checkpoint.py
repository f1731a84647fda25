"""Checkpoints: what goes in comes out, and damage is named without a flood of other errors."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.agents.acting import Memory
from worldmodels_jax.data.replay import Replay
from worldmodels_jax.training.checkpoint import CheckpointError, abstract, open_checkpoints
from worldmodels_jax.training.learner import Learner, TrainState
from worldmodels_jax.training.online import LoopState
from worldmodels_jax.types import Record, TimeStep


def _state(number: int) -> LoopState:
    """Small, but with every type that a run saves; ``number`` is in every leaf."""
    n = jnp.asarray(number)
    flags = {name: jnp.full((2, 3), number % 2 == 0) for name in ("terminated", "truncated")}
    record = Record(
        observation=jnp.full((2, 3, 4, 4, 1), n, jnp.uint8),
        action=jnp.full((2, 3), n, jnp.int32),
        reward=jnp.full((2, 3), 0.1 * n, jnp.float32),
        is_first=flags["terminated"],
        **flags,
    )
    weights = {"params": {"kernel": jnp.full((300, 7), 0.1 * n, jnp.bfloat16)}, "state": 0.3 * n}
    learner = Learner(weights, (n, {"mu": jnp.arange(3.0) + n}))
    return LoopState(
        train=TrainState(learner, Learner({"params": 0.7 * n}, ())),
        replay=Replay(record, n, {"agent": jnp.full((2, 3), n, jnp.int32)}),
        env_state={"x": n, "empty": ()},
        time_step=TimeStep(*(getattr(record, name)[:, 0] for name in TimeStep._fields)),
        memory=Memory(record, {"deter": 0.1 * n}, ()),
        episode_return=jnp.array([0.0, -0.0]) * n,
        episode_length=jnp.full(2, n, jnp.int32),
        key=jax.random.key(number),
        iteration=n,
    )


def test_every_type_comes_back_to_the_bit(tmp_path: Path, assert_identical: Callable) -> None:
    states = {step: jax.tree.map(jnp.asarray, _state(step)) for step in (3, 10)}
    checkpoints = open_checkpoints(tmp_path / "new" / "checkpoints")
    for step, state in states.items():
        checkpoints.save(step, state, {"host_env": f"é{step}", "n": [1, 2.5, None]})
    checkpoints.close()
    again = open_checkpoints(tmp_path / "new" / "checkpoints", read_only=True)
    assert again.steps() == [3, 10]
    for step, state in states.items():
        restored, extra = again.restore(step, abstract(state))
        assert_identical(restored, state)
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        assert extra == {"host_env": f"é{step}", "n": [1, 2.5, None]}
        assert_identical(again.restore_train(step, abstract(state.train)), state.train)
    again.close()


def test_only_the_newest_are_kept_in_the_order_of_numbers(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path, keep=2)
    for step in (8, 9, 10, 100):
        checkpoints.save(step, _state(step), {})
    checkpoints.close()
    assert open_checkpoints(tmp_path, read_only=True).steps() == [10, 100]


def test_a_buffer_may_be_overwritten_as_soon_as_save_returns(
    tmp_path: Path,
) -> None:
    """The loop donates its state to the next chunk while the file is still being written."""
    big = {"params": jnp.arange(4_000_000.0)}
    state = _state(1)
    state = state._replace(train=TrainState(Learner(big, ()), state.train.agent))
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    jax.block_until_ready(overwrite(big["params"]))
    checkpoints.close()
    again = open_checkpoints(tmp_path, read_only=True)
    like = abstract(state.train)
    restored = again.restore_train(1, like).world_model.variables["params"]
    again.close()
    np.testing.assert_array_equal(restored, np.arange(4_000_000.0, dtype=np.float32))


def test_reading_makes_and_removes_nothing(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path / "nowhere", read_only=True)
    assert checkpoints.steps() == []
    checkpoints.close()
    assert not (tmp_path / "nowhere").exists()
    unfinished = tmp_path / "some" / "5.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    checkpoints = open_checkpoints(tmp_path / "some", read_only=True)
    assert checkpoints.steps() == []
    checkpoints.close()
    assert unfinished.exists()


def test_a_checkpoint_of_another_machine_is_placed_here(
    trained: Path, history: Any, saved_state: Callable, assert_identical: Callable
) -> None:
    """What was trained on a GPU is evaluated on a laptop."""
    for path in (trained / "checkpoints/160").rglob("_sharding"):
        text = path.read_text()
        assert "cpu:0" in text
        path.write_text(text.replace("cpu:0", "cuda:0"))
    assert_identical(saved_state(trained, 160), history.states[-1])
    state = history.states[-1].train
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    assert all(x.sharding is not None for x in jax.tree.leaves(abstract(like)))


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    assert len(content) > 1
    if how == "removed":
        path.unlink()
    else:
        # Much is cut: the end of a file may be of versions that nothing refers to any more.
        path.write_bytes({"cut": content[: len(content) // 20], "emptied": b""}[how])


@pytest.mark.parametrize("how", ["cut", "emptied", "removed"])
@pytest.mark.parametrize(
    "pattern",
    [
        "train/_METADATA",
        "train/manifest.ocdbt",
        "train/d/*",  # which array lies where
        "train/ocdbt.process_0/d/*",  # the arrays
        "loop/d/*",
        "extra/metadata",
    ],
)
def test_a_damaged_checkpoint_is_one_error_and_stays(
    trained: Path, saved_state: Callable, capfd: pytest.CaptureFixture[str], pattern: str, how: str
) -> None:
    newest = trained / "checkpoints" / "160"
    for path in newest.glob(pattern):
        _damage(path, how)
    before = {p: p.is_file() and p.read_bytes() for p in trained.rglob("*")}
    capfd.readouterr()
    with pytest.raises(CheckpointError) as caught:
        saved_state(trained, 160)
    gc.collect()  # abandoned coroutines complain when they are collected
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err + captured.out
    message = str(caught.value)
    assert message.startswith(f"cannot read the checkpoint {newest}: it is damaged")
    assert message.endswith(
        "Nothing was changed; move that directory away to go on from the checkpoint at step 80."
    )
    assert "\n" not in message
    assert before == {p: p.is_file() and p.read_bytes() for p in trained.rglob("*")}


def test_the_oldest_checkpoint_has_no_older_one_to_go_on_from(
    trained: Path, saved_state: Callable
) -> None:
    _damage(trained / "checkpoints/80/train/_METADATA", "cut")
    with pytest.raises(CheckpointError, match="no older one: start a new run with another --run"):
        saved_state(trained, 80)


def test_a_checkpoint_of_another_structure_is_an_error(tmp_path: Path) -> None:
    state = _state(1)
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.close()
    again = open_checkpoints(tmp_path, read_only=True)
    wider = jax.tree.map(lambda x: jnp.zeros((*x.shape, 2), x.dtype), state.train)
    expected = r"another version.*params is \(\) there and \(2,\) here"
    with pytest.raises(CheckpointError, match=expected):
        again.restore_train(1, abstract(wider))
    expected = r"another version.*optimiser.0 is missing there and \(\) here"
    with pytest.raises(CheckpointError, match=expected):
        again.restore_train(1, abstract(state.train._replace(agent=state.train.world_model)))
    again.close()
