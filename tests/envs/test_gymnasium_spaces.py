"""What becomes of gymnasium's spaces, by literals."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from worldmodels_jax.envs.gymnasium_spaces import (
    adapt_actions,
    adapt_observations,
    environment_name,
    import_gymnasium,
)


def _bytes(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def _floats(*shape):
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def test_images_of_bytes_keep_their_values_and_get_an_axis_of_channels():
    for space, shape in [(_bytes(2, 3), (2, 3, 1)), (_bytes(2, 3, 4), (2, 3, 4))]:
        adapter = adapt_observations("own", space)
        assert (adapter.shape, adapter.dtype) == (shape, "uint8")
        image = np.arange(np.prod(shape), dtype=np.uint8).reshape(space.shape)
        np.testing.assert_array_equal(adapter.convert(image), image.reshape(shape))
        assert adapter.convert(image).dtype == np.uint8


def test_channels_are_moved_only_when_asked_to():
    image = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    adapter = adapt_observations("own", _bytes(2, 3, 4), channel_first=True)
    assert adapter.shape == (3, 4, 2)
    moved = adapter.convert(image)
    assert moved[1, 2].tolist() == [1 * 4 + 2, 12 + 1 * 4 + 2]
    assert adapt_observations("own", _bytes(2, 3, 4)).shape == (2, 3, 4)


def test_images_are_resized_by_area_one_by_one():
    adapter = adapt_observations("own", _bytes(2, 4), resize=(1, 2))
    assert adapter.shape == (1, 2, 1)
    image = np.array([[0, 4, 100, 100], [8, 4, 200, 100]], np.uint8)
    assert adapter.convert(image)[0, :, 0].tolist() == [4, 125]
    both = adapter.convert(np.stack([image, 0 * image]))
    assert both[:, 0, :, 0].tolist() == [[4, 125], [0, 0]]


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.float64])
def test_grids_between_0_and_1_are_spread_over_the_bytes(dtype):
    adapter = adapt_observations("own", spaces.Box(0, 1, (2, 2), dtype))
    assert (adapter.shape, adapter.dtype) == ((2, 2, 1), "uint8")
    grid = np.array([[0, 1], [1, 0]], dtype)
    assert adapter.convert(grid).reshape(-1).tolist() == [0, 255, 255, 0]


def test_fractions_of_a_grid_are_rounded_to_the_nearest_byte():
    adapter = adapt_observations("own", spaces.Box(0, 1, (1, 4), np.float32))
    grid = np.array([[0.998, 0.5 / 255 + 1e-5, 1.1, -0.1]])  # 0.998 * 255 = 254.49
    assert adapter.convert(grid).reshape(-1).tolist() == [254, 1, 255, 0]


@pytest.mark.parametrize(
    "space", [_floats(2, 3), spaces.Box(0, 9, (6,), np.int64), _bytes(6), _floats(1, 2, 1, 3)]
)
def test_other_boxes_become_vectors_of_floats(space):
    adapter = adapt_observations("own", space)
    assert (adapter.shape, adapter.dtype) == ((6,), "float32")
    values = np.arange(12).reshape(2, *space.shape).astype(space.dtype)
    vectors = adapter.convert(values)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert adapt_observations("own", _floats()).convert(np.float32(3)).tolist() == [3.0]


@pytest.mark.parametrize("space", [_bytes(2, 3, 1), _floats(3)])
def test_what_an_environment_overwrites_later_was_copied(space):
    buffer = np.zeros(space.shape, space.dtype)
    observation = adapt_observations("own", space).convert(buffer)
    buffer += 1
    assert (observation == 0).all()


def test_discrete_observations_are_one_hot_counted_from_their_start():
    adapter = adapt_observations("own", spaces.Discrete(3, start=5))
    assert (adapter.shape, adapter.dtype) == ((3,), "float32")
    assert adapter.convert(np.int64(5)).tolist() == [1, 0, 0]
    assert adapter.convert(np.array([7, 6])).tolist() == [[0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"image": _bytes(2, 2, 3)}),
        spaces.Tuple([_floats(2)]),
        spaces.MultiBinary(3),
        spaces.Text(3),
        _bytes(4, 8, 8, 1),
    ],
)
def test_other_observation_spaces_are_refused_with_the_wrapper_to_use(space):
    with pytest.raises(ValueError, match=r"^own has the observation space .*FlattenObservation"):
        adapt_observations("own", space)


def test_settings_of_images_are_refused_where_there_is_none():
    with pytest.raises(ValueError, match=r"no image: leave out resize=\(8, 8\).*pixels=True"):
        adapt_observations("own", _floats(3), resize=(8, 8))
    with pytest.raises(ValueError, match="channel_first=True"):
        adapt_observations("own", spaces.Discrete(3), channel_first=True)
    with pytest.raises(ValueError, match=r"\(4, 4\), without an axis of channels"):
        adapt_observations("own", _bytes(4, 4), channel_first=True)
    with pytest.raises(ValueError, match=r"resize=\(0, 8\) leaves no pixel"):
        adapt_observations("own", _bytes(4, 4), resize=(0, 8))


@pytest.mark.parametrize("space", [_bytes(2, 3), _floats(2, 3)])
def test_an_observation_of_another_shape_than_declared_is_refused(space):
    with pytest.raises(ValueError, match=r"shape \(3, 2\), but declares .*shape=\(2, 3\)"):
        adapt_observations("own", space).convert(np.zeros((3, 2), space.dtype))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        adapt_observations("own", space).convert(np.zeros(3, space.dtype))


def test_discrete_actions_are_counted_from_0():
    adapter = adapt_actions("own", spaces.Discrete(3, start=-1))
    assert (adapter.num_actions, adapter.discrete) == (3, True)
    assert [int(adapter.convert(a)) for a in (0, np.int32(1), np.array(2))] == [-1, 0, 1]
    assert adapter.convert(np.array([2, 0], np.int32)).tolist() == [1, -1]
    # Environments look an action up, in a dict even: an array would not do.
    assert {1: "right"}[adapter.convert(np.array(2))] == "right"


@pytest.mark.parametrize("action", [3, -1, 1.0, np.array([0, 3])])
def test_actions_that_are_none_are_refused(action):
    with pytest.raises(ValueError, match=r"of own are not all integers in \[0, 3\)"):
        adapt_actions("own", spaces.Discrete(3, start=-1)).convert(action)


def test_continuous_actions_meet_uneven_bounds_exactly_and_never_leave_them():
    low, high = np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.3], np.float32)
    adapter = adapt_actions("own", spaces.Box(low, high))
    assert (adapter.num_actions, adapter.discrete) == (2, False)
    for action, expected in [
        ([-1.0, 1.0], [-1.0, 0.3]),
        ([0.0, -1.0], [1.0, 0.0]),
        ([0.5, 0.0], [2.0, 0.15]),
        ([7.0, -7.0], [3.0, 0.0]),
    ]:
        converted = adapter.convert(np.array(action, np.float32))
        np.testing.assert_array_equal(converted, np.array(expected, np.float32))
        assert converted.dtype == np.float32


def test_a_narrow_box_contains_every_action():
    space = spaces.Box(np.float32(0.1), np.float32(0.1), (1,))
    convert = adapt_actions("own", space).convert
    assert all(space.contains(convert([a])) for a in np.linspace(-1, 1, 101))


def test_boxes_of_actions_are_flattened_and_restored():
    adapter = adapt_actions("own", spaces.Box(-2.0, 2.0, (2, 2)))
    assert adapter.num_actions == 4
    assert adapter.convert([1.0, -1.0, 0.0, 0.5]).tolist() == [[2, -2], [0, 1]]
    assert adapter.convert(np.zeros((3, 4), np.float32)).shape == (3, 2, 2)
    with pytest.raises(AssertionError, match="shape"):
        adapter.convert(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="not all finite"):
        adapter.convert([np.nan, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "space",
    [
        _floats(2),
        spaces.Box(np.float32([0.0, -np.inf]), np.float32([1.0, 1.0])),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.MultiDiscrete([2, 2]),
        spaces.Dict({}),
    ],
)
def test_other_action_spaces_are_refused_with_the_wrapper_to_use(space):
    with pytest.raises(ValueError, match=r"^own has the action space .*TransformAction"):
        adapt_actions("own", space)


def test_names_are_ids_or_classes():
    assert environment_name(gymnasium.make("CartPole-v1")) == "gymnasium/CartPole-v1"
    cart_pole = gymnasium.envs.classic_control.CartPoleEnv()
    limited = gymnasium.wrappers.TimeLimit(cart_pole, 5)
    assert environment_name(limited) == "gymnasium/CartPoleEnv"


def test_without_gymnasium_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'worldmodels_jax\[gymnasium\]'"):
        import_gymnasium()
