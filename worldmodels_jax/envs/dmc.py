"""The DeepMind Control Suite from pixels, stepped on the host.

A simulator is mutable, and so is `DmcEnv`; its `state` turns all of it into JSON values and back,
so that a run can be resumed.
"""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from worldmodels_jax.envs.dmc_backend import import_suite, open_camera, select_backend
from worldmodels_jax.envs.dmc_state import float_fields, restore_simulator, save_simulator
from worldmodels_jax.envs.host_vector import make_host_vector
from worldmodels_jax.envs.unknown_name import unknown_name_error
from worldmodels_jax.types import EnvSpec, HostVector

IMAGE_SIZE = 64
EPISODE_CONTROL_STEPS = 1000  # what the suite's own time limits come to, whatever the task

# The benchmark of 20 tasks: from pixels, one million control steps.
_BENCHMARK = (
    "acrobot_swingup",
    "cartpole_balance",
    "cartpole_balance_sparse",
    "cartpole_swingup",
    "cartpole_swingup_sparse",
    "cheetah_run",
    "cup_catch",
    "finger_spin",
    "finger_turn_easy",
    "finger_turn_hard",
    "hopper_hop",
    "hopper_stand",
    "pendulum_swingup",
    "quadruped_run",
    "quadruped_walk",
    "reacher_easy",
    "reacher_hard",
    "walker_run",
    "walker_stand",
    "walker_walk",
)
_CAMERAS = {"quadruped": 2}  # by domain; 0 for all others
_RENDERINGS = ("full", "fast")


class DmcEnv:
    """One task of the DeepMind Control Suite; a `types.HostEnv`.

    An agent step repeats its action for some control steps, until the episode ends, and sums
    their rewards. An episode that reaches its limit of control steps is truncated; it terminates
    only where the task ends it with discount 0. The rendering context belongs to the thread that
    made it, so that thread must make the steps.

    Attributes:
      spec: what a model and an agent must know.
    """

    def __init__(
        self,
        task: str,
        seed: np.random.SeedSequence,
        *,
        action_repeat: int = 2,
        camera: int | None = None,
        rendering: str = "full",
        max_episode_steps: int | None = None,
    ) -> None:
        """Loads the task and opens its rendering context.

        Args:
          task: as in `make_dmc`, like the arguments below.
          seed: of the task's random state.
          action_repeat: control steps per agent step.
          camera: the model's camera to look through.
          rendering: ``"full"`` or ``"fast"``.
          max_episode_steps: agent steps until truncation.

        Raises:
          ModuleNotFoundError, ImportError, RuntimeError: if dm_control is missing or cannot draw;
            see `make_dmc`.
          ValueError: for an unknown task, or a number out of its range.
        """
        _check_settings(action_repeat, rendering, max_episode_steps)
        backend = select_backend()
        suite = import_suite(backend)
        domain, task_name = _resolve(task, suite.ALL_TASKS)
        # The limit is counted here, because dm_control's own count cannot be restored.
        self._env = suite.load(
            domain,
            task_name,
            task_kwargs={
                "random": np.random.RandomState(np.random.MT19937(seed)),
                "time_limit": float("inf"),
            },
        )
        self._pristine = {
            name: field.copy() for name, field in float_fields(self._env.physics).items()
        }
        self._action_repeat = action_repeat
        self._limit = (
            EPISODE_CONTROL_STEPS
            if max_episode_steps is None
            else max_episode_steps * action_repeat
        )
        camera = _CAMERAS.get(domain, 0) if camera is None else camera
        _check_camera(task, camera, self._env.physics.model.ncam)
        self._camera = open_camera(
            self._env.physics, camera, IMAGE_SIZE, rendering == "fast", backend
        )
        bounds = self._env.action_spec()
        bounded = self._env.physics.model.actuator_ctrllimited.astype(bool)  # lqr's are not
        low, high = np.where(bounded, (bounds.minimum, bounds.maximum), ([-1.0], [1.0]))
        self._action_centre, self._action_reach = (low + high) / 2, (high - low) / 2
        self.spec = EnvSpec(
            name=f"dmc/{task}",
            observation_shape=(IMAGE_SIZE, IMAGE_SIZE, 3),
            observation_dtype="uint8",
            num_actions=bounds.shape[0],
            discrete=False,
            max_episode_steps=-(-self._limit // action_repeat),
        )
        self._control_steps = 0
        self._pending_reset = True
        self._closed = False

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, bool]:
        """Takes one agent step; the first call, and that after a last step, is a reset.

        Args:
          action: (A,) in [-1, 1], stretched to the bounds that the task has, if any; what lies
            outside is clipped. Ignored by a reset.

        Returns:
          Observation (64, 64, 3) uint8, the reward summed over the control steps (0 of a reset),
          terminated, truncated, is_first.

        Raises:
          ValueError: for an action of another shape or not finite, or if this was closed.
        """
        self._check_open()
        if self._pending_reset:
            self._env.reset()
            self._control_steps, self._pending_reset = 0, False
            return self._image(), 0.0, False, False, True
        control = self._control(action)
        reward = 0.0
        for _ in range(self._action_repeat):
            time_step = self._env.step(control)
            reward += float(time_step.reward)
            self._control_steps += 1
            self._pending_reset = time_step.last() or self._control_steps >= self._limit
            if self._pending_reset:
                break
        terminated = bool(time_step.last() and time_step.discount == 0)
        return self._image(), reward, terminated, self._pending_reset and not terminated, False

    def restart(self) -> None:
        """Makes the next ``step`` a reset.

        Raises:
          ValueError: if this was closed.
        """
        self._check_open()
        self._pending_reset = True

    def state(self) -> dict[str, Any]:
        """Returns all that the future depends on, as JSON values.

        Raises:
          ValueError: if this was closed.
        """
        self._check_open()
        return {
            "simulator": save_simulator(self._env.physics, self._env.task.random, self._pristine),
            "control_steps": self._control_steps,
            "pending_reset": self._pending_reset,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues, bit by bit, where ``state`` was called.

        Args:
          state: what ``state`` returned, of an environment made with the same arguments (the seed
            may differ: it is superseded).

        Raises:
          ValueError: if this was closed.
        """
        self._check_open()
        # After a last step, or before the first one, dm_control would reset in its next step.
        self._env.reset()
        restore_simulator(
            self._env.physics, self._env.task.random, self._pristine, state["simulator"]
        )
        self._control_steps = state["control_steps"]
        self._pending_reset = state["pending_reset"]

    def close(self) -> None:
        """Frees the rendering context and the simulator; every later call is an error."""
        if not self._closed:
            self._closed = True
            self._env.physics.free()

    def _image(self) -> np.ndarray:
        # The camera returns a view of a buffer that it draws into again.
        return self._camera.render().copy()

    def _control(self, action: Any) -> np.ndarray:
        action = np.asarray(action, np.float64)
        shape = (self.spec.num_actions,)
        if action.shape != shape or not np.isfinite(action).all():
            raise ValueError(
                f"action={action} of {self.spec.name} is not {shape[0]} finite numbers; give an "
                f"array of shape {shape} with values in [-1, 1]."
            )
        return self._action_centre + self._action_reach * np.clip(action, -1.0, 1.0)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"This {self.spec.name} was closed; make a new one.")


def task_names() -> tuple[str, ...]:
    """Returns the 20 tasks of the benchmark, sorted; `make_dmc` takes the suite's others too."""
    return _BENCHMARK


def make_dmc(
    task: str,
    *,
    num_envs: int,
    seed: int,
    workers: int = 0,
    timeout: float = 60.0,
    action_repeat: int = 2,
    camera: int | None = None,
    rendering: str = "full",
    max_episode_steps: int | None = None,
) -> HostVector:
    """Makes E copies of a task of the DeepMind Control Suite, seen as 64x64 RGB images.

    Args:
      task: one of `task_names`, or any other task of the suite as ``"domain_task"``.
      num_envs: E.
      seed: of all random states; each environment gets its own stream of it.
      workers: the processes that the environments are spread over; 0 for this one.
      timeout: seconds that a worker may take for a step.
      action_repeat: control steps per agent step; their rewards are summed.
      camera: the number of one of the model's cameras; None for 0 (quadruped: 2).
      rendering: ``"full"``, as published scores were made, or ``"fast"``: no multisampling, no
        shadows and no reflections. Drawn by a CPU that is about 30 times cheaper, but it is other
        pixels, so the scores are not comparable.
      max_episode_steps: agent steps until truncation; None for the suite's limit of 1000 control
        steps.

    Returns:
      The vector; its first ``step`` is a reset if ``reset`` was not called.

    Raises:
      ModuleNotFoundError: if dm_control is not installed.
      ImportError: if MuJoCo is a version that dm_control does not work with, or there is no OpenGL
        to draw with; see `dmc_backend.select_backend`.
      RuntimeError: if dm_control was already imported with another backend than ``MUJOCO_GL``.
      ValueError: for an unknown task or a number out of its range.
    """
    select_backend()  # here, so that all workers take over one choice
    settings: dict[str, Any] = {
        "action_repeat": action_repeat,
        "camera": camera,
        "rendering": rendering,
        "max_episode_steps": max_episode_steps,
    }
    return make_host_vector(
        functools.partial(DmcEnv, task, **settings),
        num_envs=num_envs,
        seed=seed,
        workers=workers,
        timeout=timeout,
        settings=settings,
    )


def _resolve(task: str, suite_tasks: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Returns the domain and the task by the suite's own names."""
    known = {f"{domain}_{name}": (domain, name) for domain, name in suite_tasks}
    known["cup_catch"] = ("ball_in_cup", "catch")
    if task not in known:
        raise unknown_name_error(
            "DeepMind Control task", task, sorted(known), "worldmodels_jax.envs.dmc.task_names()"
        )
    return known[task]


def _check_settings(action_repeat: int, rendering: str, max_episode_steps: int | None) -> None:
    if action_repeat < 1 or (max_episode_steps is not None and max_episode_steps < 1):
        raise ValueError(
            f"action_repeat={action_repeat} and max_episode_steps={max_episode_steps} must be at "
            "least 1 (or None for max_episode_steps)."
        )
    if rendering not in _RENDERINGS:
        raise ValueError(
            f"rendering={rendering!r} is not one of {' and '.join(map(repr, _RENDERINGS))}."
        )


def _check_camera(task: str, camera: int, num_cameras: int) -> None:
    if not 0 <= camera < num_cameras:
        raise ValueError(
            f"camera={camera} is not one of the {num_cameras} cameras of {task!r}; give a number "
            f"from 0 to {num_cameras - 1}, or None for the one that is usual."
        )
