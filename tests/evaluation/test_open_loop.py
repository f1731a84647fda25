"""Dreams from recorded frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldmodels_jax.data.replay import empty_records
from worldmodels_jax.evaluation.open_loop import episode_window, open_loop
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.types import EnvSpec, PyTree, Record


def test_a_dream_knows_the_context_and_the_actions_and_nothing_else(
    world_model: WorldModel, model_variables: PyTree, records: Record
) -> None:
    # Many rows: the tokens are sampled, and an untrained posterior is far from certain.
    records = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), 16, axis=0), records)
    dream = jax.jit(
        lambda r: open_loop(world_model, model_variables, r, jax.random.key(0), context=3)
    )
    frames = np.asarray(dream(records))
    assert frames.shape == records.observation.shape
    assert frames.dtype == np.uint8

    later = records.observation.at[:, 3:].set(255 - records.observation[:, 3:])
    np.testing.assert_array_equal(dream(records._replace(observation=later)), frames)

    seen = records.observation.at[:, 1].set(255 - records.observation[:, 1])
    changed = np.asarray(dream(records._replace(observation=seen)))
    np.testing.assert_array_equal(changed[:, [0, 2]], frames[:, [0, 2]])  # each frame by itself
    assert (changed[:, 1] != frames[:, 1]).any()

    other = records._replace(action=(records.action + 1) % 3)
    np.testing.assert_array_equal(dream(other)[:, :3], frames[:, :3])
    assert (np.asarray(dream(other))[:, 3:] != frames[:, 3:]).any()


def test_frames_are_reconstructed_one_by_one_and_dreamed_from_the_last() -> None:
    """A model whose latent is the frame itself, and whose dream adds the action to it."""
    horizons = []

    def observe(
        variables: int, context: Record, key: jax.Array, horizon: int, starts: int = 1
    ) -> tuple:
        horizons.append(horizon)
        return variables * context.observation[:, -1], None

    model = WorldModel(
        init=None,
        loss=None,
        observe=observe,
        imagine=lambda variables, carry, action, key: (carry + action[:, None], None),
        decode=lambda variables, carry: carry,
        feature_size=1,
    )
    spec = EnvSpec("sum", (1,), "float32", 10, True, 10)
    records = empty_records(spec, (2, 5))._replace(
        observation=jnp.array([[1.0, 2, 3, -1, -1], [10, 20, 30, -1, -1]])[..., None],
        action=jnp.array([[9, 9, 1, 2, 9], [9, 9, 3, 4, 9]]),  # the nines lead to no dreamed frame
    )
    frames = open_loop(model, 1, records, jax.random.key(0), context=3)
    np.testing.assert_array_equal(frames[..., 0], [[1, 2, 3, 4, 6], [10, 20, 30, 33, 37]])
    assert horizons == [0, 2]  # rooms for the two dreamed frames only where the dream begins


@pytest.mark.parametrize("context", [0, 8])
def test_a_context_must_leave_something_to_dream(
    world_model: WorldModel, model_variables: PyTree, records: Record, context: int
) -> None:
    with pytest.raises(ValueError, match="choose 1 to 7"):
        open_loop(world_model, model_variables, records, jax.random.key(0), context=context)


def test_windows_lie_within_an_episode_where_one_is_long_enough(spec: EnvSpec) -> None:
    records = empty_records(spec, (10,))._replace(
        is_first=jnp.zeros(10, bool).at[jnp.array([0, 2, 7])].set(True)
    )
    assert episode_window(records, 2) == 0
    assert episode_window(records, 5) == 2
    assert episode_window(records, 6) == 0  # none is that long: the first with a single reset
    with pytest.raises(ValueError, match="10 records"):
        episode_window(records, 11)
