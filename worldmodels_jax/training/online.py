"""The online loop: environment step, replay write, updates and dreams as one ``lax.scan`` body.

The body is made of two halves, ``decide`` and ``learn``, which the host-stepped loop of
``training.host`` calls one by one around an emulator's step.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax.agents.acting import Actor, newest
from worldmodels_jax.data.replay import Replay, add, init_replay
from worldmodels_jax.ops.collectives import per_device, psum
from worldmodels_jax.training.config import Config, updates_per_iteration, warmup_iterations
from worldmodels_jax.training.learner import TrainState, Updates
from worldmodels_jax.types import Environment, EnvSpec, Metrics, PyTree, Record, TimeStep


class LoopState(NamedTuple):
    """Everything a run is: saved, it resumes bit-identically."""

    train: TrainState
    replay: Replay
    env_state: PyTree  # of E environments; () when they are stepped by the host
    time_step: TimeStep  # (E, ...), where the environments stand
    context: Record  # (E, C, ...), what the actor remembers
    episode_return: jax.Array  # (E,) of the running episodes
    episode_length: jax.Array  # (E,)
    key: jax.Array
    iteration: jax.Array  # () int32; E agent steps each


class Halves(NamedTuple):
    """The loop's body in pieces.

    Attributes:
      init: ``(key, env_state, time_step) -> LoopState``.
      decide: ``(state) -> state, action (E, ...)``: act on the current time step and write the
        record to the replay.
      arrive: ``(state, env_state, time_step) -> state, episode metrics``.
      learn: ``(state) -> state, metrics``: the updates that are due.
    """

    init: Callable[[jax.Array, PyTree, TimeStep], LoopState]
    decide: Callable[[LoopState], tuple[LoopState, jax.Array]]
    arrive: Callable[[LoopState, PyTree, TimeStep], tuple[LoopState, Metrics]]
    learn: Callable[[LoopState], tuple[LoopState, Metrics]]


class Loop(NamedTuple):
    """The compiled loop.

    Attributes:
      init: ``(key) -> LoopState``.
      run: ``(state) -> state, metrics``: one chunk; every metric has a leading axis of
        ``config.training.chunk`` iterations. Pure; jit it with the state donated.
    """

    init: Callable[[jax.Array], LoopState]
    run: Callable[[LoopState], tuple[LoopState, Metrics]]


# How the leaves of a LoopState are mapped over seeds: the counters are common to all seeds, so that
# "is an update due" stays one branch and the replay write one slice.
SEED_AXES = LoopState(
    train=0,  # type: ignore[arg-type]
    replay=Replay(storage=0, written=None),  # type: ignore[arg-type]
    env_state=0,
    time_step=0,  # type: ignore[arg-type]
    context=0,  # type: ignore[arg-type]
    episode_return=0,  # type: ignore[arg-type]
    episode_length=0,  # type: ignore[arg-type]
    key=0,  # type: ignore[arg-type]
    iteration=None,  # type: ignore[arg-type]
)


def _repeat(
    step: Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]],
    train: TrainState,
    key: jax.Array,
    due: jax.Array,
    most: int,
) -> tuple[TrainState, Metrics]:
    """Run ``step`` ``due`` times out of at most ``most``; metrics are means, 0 if none was due."""
    if most == 0:
        return train, {}
    shapes = jax.eval_shape(step, train, key)[1]

    def skip(train: TrainState, key: jax.Array) -> tuple[TrainState, Metrics]:
        del key
        return train, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(train: TrainState, inputs: tuple[jax.Array, jax.Array]) -> tuple[TrainState, Metrics]:
        index, step_key = inputs
        return jax.lax.cond(index < due, step, skip, train, step_key)

    if most == 1:
        return body(train, (jnp.zeros((), jnp.int32), key))
    train, metrics = jax.lax.scan(body, train, (jnp.arange(most), jax.random.split(key, most)))
    return train, jax.tree.map(lambda x: x.sum(0) / jnp.maximum(due, 1), metrics)


def make_halves(
    config: Config,
    spec: EnvSpec,
    updates: Updates,
    actor: Actor,
    *,
    num_devices: int = 1,
    axis_name: str | None = None,
) -> Halves:
    """Build the pieces of the loop's body for the E environments of a device.

    Args:
      config: the run; its sizes are those of all devices together.
      spec: the environment's.
      updates: the gradient steps of a device.
      actor: the acting functions.
      num_devices: over which environments and replay are split.
      axis_name: the mapped axis of devices. All keys in the state are common to them; what is
        drawn is each device's own, but for the initial parameters.
    """
    num_envs = config.env.num_envs // num_devices
    capacity = config.training.replay_capacity // config.env.num_envs
    warmup = warmup_iterations(config)
    ratios = {
        name: updates_per_iteration(ratio, config.env.num_envs)
        for name, ratio in (
            ("world_model", config.training.world_model_ratio),
            ("agent", config.training.agent_ratio),
        )
    }

    def init(key: jax.Array, env_state: PyTree, time_step: TimeStep) -> LoopState:
        key_train, key_loop = jax.random.split(key)
        return LoopState(
            train=updates.init(key_train),
            replay=init_replay(spec, num_envs, capacity),
            env_state=env_state,
            time_step=time_step,
            context=actor.init(num_envs),
            episode_return=jnp.zeros(num_envs),
            episode_length=jnp.zeros(num_envs, jnp.int32),
            key=key_loop,
            iteration=jnp.zeros((), jnp.int32),
        )

    def decide(state: LoopState) -> tuple[LoopState, jax.Array]:
        key, key_act = jax.random.split(state.key)
        key_act = per_device(key_act, axis_name)
        context = actor.push(state.context, state.time_step)
        action = jax.lax.cond(
            state.iteration < warmup,
            lambda: actor.act_random(num_envs, key_act),
            lambda: actor.act(
                state.train.world_model.variables, state.train.agent.variables, context, key_act
            ),
        )
        context = actor.record_action(context, action)
        replay = add(state.replay, newest(context))
        return state._replace(key=key, context=context, replay=replay), action

    def arrive(
        state: LoopState, env_state: PyTree, time_step: TimeStep
    ) -> tuple[LoopState, Metrics]:
        fresh = time_step.is_first
        total = jnp.where(fresh, 0.0, state.episode_return + time_step.reward)
        length = jnp.where(fresh, 0, state.episode_length + 1)
        done = time_step.is_last
        sums = {
            "episode/count": done.sum().astype(jnp.float32),
            "episode/return_sum": jnp.where(done, total, 0.0).sum(),
            "episode/length_sum": jnp.where(done, length, 0).sum().astype(jnp.float32),
        }
        metrics = {name: psum(value, axis_name) for name, value in sums.items()}
        state = state._replace(
            env_state=env_state, time_step=time_step, episode_return=total, episode_length=length
        )
        return state, metrics

    def sample_and_update(
        replay: Replay,
        sample: Callable[[Replay, jax.Array], Record],
        update: Callable[[TrainState, Record, jax.Array], tuple[TrainState, Metrics]],
        train: TrainState,
        key: jax.Array,
    ) -> tuple[TrainState, Metrics]:
        key_sample, key_step = jax.random.split(key)
        return update(train, sample(replay, key_sample), key_step)

    def learn(state: LoopState) -> tuple[LoopState, Metrics]:
        key, *keys = jax.random.split(state.key, 3)
        train = state.train
        metrics: Metrics = {}
        steps = {
            "world_model": (updates.sample_world_model, updates.world_model),
            "agent": (updates.sample_agent, updates.agent),
        }
        for (name, (sample, update)), key_update in zip(steps.items(), keys, strict=True):
            ratio = ratios[name]
            # Updates number floor(i r) .. floor((i + 1) r) - 1 fall into iteration i, exactly. The
            # whole part of r is kept out of the products, which would overflow with it.
            whole, part = divmod(ratio.numerator, ratio.denominator)
            phase = state.iteration % ratio.denominator
            due = (phase + 1) * part // ratio.denominator - phase * part // ratio.denominator
            due = jnp.where(state.iteration + 1 >= warmup, whole + due, 0)

            step = functools.partial(sample_and_update, state.replay, sample, update)
            key_update = per_device(key_update, axis_name)
            train, values = _repeat(step, train, key_update, due, math.ceil(ratio))
            metrics |= {f"{name}/{key}": value for key, value in values.items()}
            metrics[f"{name}/updates"] = due.astype(jnp.float32)
        state = state._replace(train=train, key=key, iteration=state.iteration + 1)
        return state, metrics

    return Halves(init, decide, arrive, learn)


def make_loop(
    config: Config, env: Environment, halves: Halves, *, axis_name: str | None = None
) -> Loop:
    """The fully compiled loop of a JAX-native environment.

    Args:
      config: the run.
      env: the E environments of a device with auto-reset
        (``envs.batch(envs.auto_reset(env), E)``).
      halves: the pieces, made with the same axis.
      axis_name: the mapped axis of devices.
    """

    def init(key: jax.Array) -> LoopState:
        key_env, key_loop = jax.random.split(key)
        return halves.init(key_loop, *env.reset(per_device(key_env, axis_name)))

    def body(state: LoopState, _: None) -> tuple[LoopState, Metrics]:
        state, action = halves.decide(state)
        key, key_env = jax.random.split(state.key)
        env_state, time_step = env.step(state.env_state, action, per_device(key_env, axis_name))
        state, episodes = halves.arrive(state._replace(key=key), env_state, time_step)
        state, metrics = halves.learn(state)
        return state, metrics | episodes

    def run(state: LoopState) -> tuple[LoopState, Metrics]:
        return jax.lax.scan(body, state, None, length=config.training.chunk)

    return Loop(init, run)


def over_seeds(loop: Loop) -> Loop:
    """The same loop for S seeds in one program: ``init`` takes ``(S,)`` keys."""
    return Loop(
        init=jax.vmap(loop.init, out_axes=SEED_AXES),
        run=jax.vmap(loop.run, in_axes=(SEED_AXES,), out_axes=(SEED_AXES, 0)),
    )
