"""Gymnasium's spaces in the terms of the library: what may be observed and done, and how."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import chex
import numpy as np

from worldmodels_jax.envs.area_resize import area_resize
from worldmodels_jax.envs.time_limit import NO_TIME_LIMIT
from worldmodels_jax.types import EnvSpec

_OBSERVATION_REMEDY = (
    "only uint8 images, boxes and Discrete can be represented. Wrap the environment so that it "
    "has one of them: gymnasium.wrappers.FlattenObservation makes one vector of all parts, "
    "gymnasium.wrappers.TransformObservation picks one part"
)
_ACTION_REMEDY = (
    "only Discrete and boxes of floats with finite bounds can be represented. Wrap the environment "
    "in gymnasium.wrappers.TransformAction so that it has one of them"
)


class ObservationAdapter(NamedTuple):
    """What a model sees of an observation space.

    Attributes:
      shape: of the observations in the library, ``(H, W, C)`` or ``(F,)``.
      dtype: ``"uint8"`` of images and grids, ``"float32"`` of vectors.
      convert: ``(..., *space.shape) -> (..., *shape)``, always a copy.
    """

    shape: tuple[int, ...]
    dtype: str
    convert: Callable[[Any], np.ndarray]


class ActionAdapter(NamedTuple):
    """What an agent does in an action space.

    Attributes:
      num_actions: A.
      discrete: whether actions are integers in ``[0, A)`` or vectors in ``[-1, 1]^A``.
      convert: ``(...) or (..., A) -> (..., *space.shape)``.
    """

    num_actions: int
    discrete: bool
    convert: Callable[[Any], Any]


class Adapters(NamedTuple):
    """An environment in the terms of the library.

    Attributes:
      spec: what a model and an agent must know.
      observation: what becomes of its observations.
      action: what becomes of its actions.
    """

    spec: EnvSpec
    observation: ObservationAdapter
    action: ActionAdapter


def import_gymnasium() -> ModuleType:
    """Returns gymnasium.

    Raises:
      ModuleNotFoundError: with the command that installs it.
    """
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "This environment needs gymnasium, which is not installed: run "
            "`pip install 'worldmodels_jax[gymnasium]'`."
        ) from error
    return gymnasium


def environment_name(env: Any) -> str:
    """Returns ``"gymnasium/"`` and the id of an environment or vector, or else its class."""
    return f"gymnasium/{env.spec.id if env.spec else type(env.unwrapped).__name__}"


def adapt(
    env: Any,
    observation_space: Any,
    action_space: Any,
    *,
    max_episode_steps: int | None = None,
    resize: tuple[int, int] | None = None,
    channel_first: bool = False,
) -> Adapters:
    """Tells what becomes of an environment, or of each one of a vector.

    Args:
      env: a ``gymnasium.Env`` or ``gymnasium.vector.VectorEnv``.
      observation_space: of one observation.
      action_space: of one action.
      max_episode_steps: its time limit; by default as registered, or else `NO_TIME_LIMIT`.
      resize: see `adapt_observations`.
      channel_first: see `adapt_observations`.

    Raises:
      ValueError: for a space that cannot be represented.
    """
    name = environment_name(env)
    observation = adapt_observations(
        name, observation_space, resize=resize, channel_first=channel_first
    )
    action = adapt_actions(name, action_space)
    registered = env.spec.max_episode_steps if env.spec else None
    spec = EnvSpec(
        name=name,
        observation_shape=observation.shape,
        observation_dtype=observation.dtype,
        num_actions=action.num_actions,
        discrete=action.discrete,
        max_episode_steps=max_episode_steps or registered or NO_TIME_LIMIT,
    )
    return Adapters(spec, observation, action)


def adapt_observations(
    name: str, space: Any, *, resize: tuple[int, int] | None = None, channel_first: bool = False
) -> ObservationAdapter:
    """Tells what becomes of an observation space.

    A box of two or three axes is an image or grid if it is of uint8, or if its bounds are 0 and 1
    (then the unit interval is spread over 0..255, as in `envs.gymnax`); any other box becomes a
    float32 vector. A Discrete observation becomes one-hot.

    Args:
      name: of the environment, for errors.
      space: of one observation.
      resize: height and width that images are resized to, by area.
      channel_first: images are ``(C, H, W)``, and become ``(H, W, C)``.

    Raises:
      ValueError: for another space, or for settings of images where there is none.
    """
    spaces = import_gymnasium().spaces
    is_box = isinstance(space, spaces.Box)
    is_unit = is_box and bool((space.low == 0).all() and (space.high == 1).all())
    is_image = is_box and len(space.shape) in (2, 3) and (is_unit or space.dtype == np.uint8)
    if is_image:
        return _image(name, space, is_unit, resize, channel_first)
    if resize is not None or channel_first:
        raise ValueError(
            f"{name} has the observation space {space}, which is no image: leave out "
            f"resize={resize} and channel_first={channel_first}, or observe rendered frames with "
            "pixels=True."
        )
    if isinstance(space, spaces.Discrete):
        table = np.eye(int(space.n), dtype=np.float32)
        return ObservationAdapter(
            (int(space.n),), "float32", lambda index: table[np.asarray(index) - space.start]
        )
    if not is_box or (space.dtype == np.uint8 and len(space.shape) > 3):
        raise ValueError(f"{name} has the observation space {space}; {_OBSERVATION_REMEDY}.")

    size = int(np.prod(space.shape))

    def to_vector(observation: Any) -> np.ndarray:
        array = np.array(observation, np.float32)
        return array.reshape(*_leading_axes(name, array, space.shape), size)

    return ObservationAdapter((size,), "float32", to_vector)


def adapt_actions(name: str, space: Any) -> ActionAdapter:
    """Tells what becomes of an action space.

    A Discrete action is counted from the space's ``start``. A box is flattened, and [-1, 1] scaled
    to its bounds; what lies outside is clipped.

    Args:
      name: of the environment, for errors.
      space: of one action.

    Raises:
      ValueError: for another space, or a box without finite bounds.
    """
    spaces = import_gymnasium().spaces
    if isinstance(space, spaces.Discrete):
        return _discrete_actions(name, space)
    is_float_box = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
    if not (is_float_box and np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(f"{name} has the action space {space}; {_ACTION_REMEDY}.")

    size = int(np.prod(space.shape))

    def to_box(actions: Any) -> np.ndarray:
        array = np.asarray(actions, space.dtype)
        chex.assert_shape(array, (..., size))
        if not np.isfinite(array).all():
            raise ValueError(
                f"actions={actions} of {name} are not all finite; give vectors in [-1, 1]^{size}."
            )
        unit = (np.clip(array, -1.0, 1.0) + 1.0) / 2.0
        unit = unit.reshape(*array.shape[:-1], *space.shape)
        # A convex combination meets both ends exactly; rounding may pass them in between.
        return np.clip((1.0 - unit) * space.low + unit * space.high, space.low, space.high)

    return ActionAdapter(size, False, to_box)


def _image(
    name: str, space: Any, is_unit: bool, resize: tuple[int, int] | None, channel_first: bool
) -> ObservationAdapter:
    if resize is not None and min(resize) < 1:
        raise ValueError(
            f"resize={resize} leaves no pixel; give a height and a width of at least 1."
        )
    if channel_first and len(space.shape) != 3:
        raise ValueError(
            f"{name} has images of shape {space.shape}, without an axis of channels: leave out "
            "channel_first=True."
        )

    def to_image(observation: Any) -> np.ndarray:
        array = np.array(observation)
        lead = _leading_axes(name, array, space.shape)
        if is_unit:
            array = np.rint(np.clip(array.astype(np.float32), 0.0, 1.0) * 255.0).astype(np.uint8)
        if channel_first:
            array = np.moveaxis(array, -3, -1)
        if len(space.shape) == 2:
            array = array[..., None]
        if resize is not None:
            images = array.reshape(-1, *array.shape[-3:])
            array = np.stack([area_resize(image, resize) for image in images])
            array = array.reshape(*lead, *array.shape[-3:])
        return array

    example = np.zeros(space.shape, space.dtype)
    return ObservationAdapter(to_image(example).shape, "uint8", to_image)


def _discrete_actions(name: str, space: Any) -> ActionAdapter:
    count, start = int(space.n), int(space.start)

    def to_discrete(actions: Any) -> Any:
        array = np.asarray(actions)
        is_index = np.issubdtype(array.dtype, np.integer)
        if not (is_index and ((array >= 0) & (array < count)).all()):
            raise ValueError(
                f"actions={actions} of {name} are not all integers in [0, {count}); count them "
                "from 0, whatever the space's start."
            )
        # The sum makes a scalar of an array without axes: environments look actions up.
        return array.astype(np.int64) + start

    return ActionAdapter(count, True, to_discrete)


def _leading_axes(name: str, array: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns what precedes the axes of the space, which the array must have."""
    cut = array.ndim - len(shape)
    if cut < 0 or array.shape[cut:] != shape:
        raise ValueError(
            f"{name} returned an observation of shape {array.shape}, but declares "
            f"observation_space.shape={shape}: declare what it returns."
        )
    return array.shape[:cut]
