"""The state of a dm_control simulator as JSON values, and back, to the last bit."""

import base64
from typing import Any

import numpy as np

# lqr draws these when it is made: two of them differ before an episode has changed anything.
_DRAWN_WHEN_MADE = ("jnt_stiffness",)


def float_fields(physics: Any) -> dict[str, np.ndarray]:
    """Returns the numbers of a model by the names that MuJoCo gives them.

    Args:
      physics: a ``dm_control.mujoco.Physics``.

    Returns:
      Views: they follow the model, and writing to them changes it.
    """
    model = physics.model.ptr
    fields = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    return {
        name: field
        for name, field in fields.items()
        if isinstance(field, np.ndarray) and np.issubdtype(field.dtype, np.floating)
    }


def save_simulator(physics: Any, random: Any, pristine: dict[str, np.ndarray]) -> dict[str, Any]:
    """Saves a simulator at rest between two control steps.

    Args:
      physics: a ``dm_control.mujoco.Physics``.
      random: the ``numpy.random.RandomState`` of its task.
      pristine: copies of `float_fields` from before the first episode.

    Returns:
      JSON values: MuJoCo's integration state (the solver's warm start included), the fields of
      the model that episodes have changed (reacher and finger move their target there), and the
      random state.
    """
    import mujoco

    generator = random.get_state(legacy=False)
    return {
        "integration": _encode(physics.get_state(mujoco.mjtState.mjSTATE_INTEGRATION)),
        "model": {
            name: _encode(field)
            for name, field in float_fields(physics).items()
            if name in _DRAWN_WHEN_MADE or not np.array_equal(field, pristine[name])
        },
        "random": {
            "key": _encode(generator["state"]["key"]),
            "pos": int(generator["state"]["pos"]),
            "has_gauss": int(generator["has_gauss"]),
            "gauss": float(generator["gauss"]),
        },
    }


def restore_simulator(
    physics: Any, random: Any, pristine: dict[str, np.ndarray], saved: dict[str, Any]
) -> None:
    """Puts a simulator of the same task where `save_simulator` was called.

    Args:
      physics: a ``dm_control.mujoco.Physics``.
      random: the ``numpy.random.RandomState`` of its task.
      pristine: copies of `float_fields` from before the first episode.
      saved: what `save_simulator` returned.
    """
    import mujoco

    for name, field in float_fields(physics).items():
        value = saved["model"].get(name)
        np.copyto(
            field,
            pristine[name] if value is None else _decode(value, field.dtype).reshape(field.shape),
        )
    _upload_terrain(physics)
    integration = _decode(saved["integration"], np.dtype(np.float64))
    physics.set_state(integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    # Where a control step ends: all that follows from positions and velocities is computed.
    mujoco.mj_step1(physics.model.ptr, physics.data.ptr)
    generator = saved["random"]
    random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {
                "key": _decode(generator["key"], np.dtype(np.uint32)),
                "pos": generator["pos"],
            },
            "has_gauss": generator["has_gauss"],
            "gauss": generator["gauss"],
        }
    )


def _upload_terrain(physics: Any) -> None:
    """Height fields (quadruped's escape) are drawn from a copy in the rendering context."""
    import mujoco

    for index in range(physics.model.nhfield):
        with physics.contexts.gl.make_current() as context:
            context.call(
                mujoco.mjr_uploadHField, physics.model.ptr, physics.contexts.mujoco.ptr, index
            )


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _decode(text: str, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)
