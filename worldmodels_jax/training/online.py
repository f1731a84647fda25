"""The online loop: environment step, replay write, updates and dreams as one ``lax.scan`` body.

The body is made of two halves, ``decide`` and ``learn``, which the host-stepped loop of
``training.host`` calls one by one around an emulator's step.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldmodels_jax.agents.acting import Actor, Memory, newest
from worldmodels_jax.data.replay import Replay, add, init_replay
from worldmodels_jax.ops.collectives import per_device, psum
from worldmodels_jax.training.config import Config, updates_per_iteration, warmup_iterations
from worldmodels_jax.training.gradient import TrainState, repeat
from worldmodels_jax.training.learner import Update, Updates
from worldmodels_jax.types import Environment, EnvSpec, Metrics, PyTree, TimeStep


class LoopState(NamedTuple):
    """Everything a run is: saved, it resumes bit-identically."""

    train: TrainState
    replay: Replay
    env_state: PyTree  # of E environments; () when they are stepped by the host
    time_step: TimeStep  # (E, ...), where the environments stand
    memory: Memory  # (E, ...), what the actor remembers
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
    replay=Replay(storage=0, written=None, draws=0),  # type: ignore[arg-type]
    env_state=0,
    time_step=0,  # type: ignore[arg-type]
    memory=0,  # type: ignore[arg-type]
    episode_return=0,  # type: ignore[arg-type]
    episode_length=0,  # type: ignore[arg-type]
    key=0,  # type: ignore[arg-type]
    iteration=None,  # type: ignore[arg-type]
)


# Draws are those of one sampler, see ``Replay.draws``; () where records are sampled uniformly.
_Repeated = tuple[TrainState, PyTree]


class _Schedule(NamedTuple):
    """When updates of one kind are due, in loop iterations."""

    ratio: Fraction  # updates per iteration
    start: int  # iterations before the first
    epoch: int  # iterations between rounds
    first: int  # updates beside the others in the first round

    @property
    def most(self) -> int:
        """The most updates of one iteration."""
        return math.ceil(self.ratio * self.epoch) + self.first if self.ratio else 0

    def due(self, iteration: jax.Array) -> tuple[jax.Array, jax.Array]:
        """How many updates fall into an iteration, and whether it is that of the first round."""
        done = iteration + 1
        # Up to iteration n there are floor(n r), exactly; products of n with r would overflow.
        whole, part = divmod(self.ratio.numerator, self.ratio.denominator)

        def upto(n: jax.Array) -> jax.Array:
            cycles, rest = jnp.divmod(n, self.ratio.denominator)
            return cycles * part + rest * part // self.ratio.denominator

        count = self.epoch * whole + upto(done) - upto(done - self.epoch)
        is_round = (done >= self.start) & (done % self.epoch == 0)
        is_first = is_round & (done - self.epoch < self.start)
        return jnp.where(is_round, count + jnp.where(is_first, self.first, 0), 0), is_first


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
    training = config.training
    schedules = {
        name: _Schedule(
            updates_per_iteration(update.ratio, config.env.num_envs),
            max(warmup, math.ceil(update.start / config.env.num_envs)),
            max(1, training.epoch // config.env.num_envs),
            update.first,
        )
        for name, update in updates.parts.items()
    }
    samplers = updates.parts if training.sampling == "episodes" else ()

    def init(key: jax.Array, env_state: PyTree, time_step: TimeStep) -> LoopState:
        key_train, key_loop = jax.random.split(key)
        return LoopState(
            train=updates.init(key_train),
            replay=init_replay(spec, num_envs, capacity, samplers),
            env_state=env_state,
            time_step=time_step,
            memory=actor.init(num_envs),
            episode_return=jnp.zeros(num_envs),
            episode_length=jnp.zeros(num_envs, jnp.int32),
            key=key_loop,
            iteration=jnp.zeros((), jnp.int32),
        )

    def decide(state: LoopState) -> tuple[LoopState, jax.Array]:
        key, key_act = jax.random.split(state.key)
        key_act = per_device(key_act, axis_name)
        memory = actor.push(state.memory, state.time_step)
        memory, action = jax.lax.cond(
            state.iteration < warmup,
            lambda: actor.act_random(memory, key_act),
            lambda: actor.act(
                state.train.world_model.variables, state.train.agent.variables, memory, key_act
            ),
        )
        if training.exploration:
            memory, action = explore(memory, action, jax.random.fold_in(key_act, 1))
        replay = add(state.replay, newest(memory))
        return state._replace(key=key, memory=memory, replay=replay), action

    def explore(memory: Memory, action: jax.Array, key: jax.Array) -> tuple[Memory, jax.Array]:
        key_whether, key_action = jax.random.split(key)
        _, other = actor.act_random(memory, key_action)
        explores = jax.random.bernoulli(key_whether, training.exploration, (num_envs,))
        action = jnp.where(explores.reshape(-1, *[1] * (action.ndim - 1)), other, action)
        return actor.record_action(memory, action), action

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

    def learn(state: LoopState) -> tuple[LoopState, Metrics]:
        key, *keys = jax.random.split(state.key, 1 + len(updates.parts))
        train, replay = state.train, state.replay
        metrics: Metrics = {}
        for (name, update), key_update in zip(updates.parts.items(), keys, strict=True):
            due, is_first = schedules[name].due(state.iteration)
            step = functools.partial(sample_and_update, replay, update)
            draws: PyTree = replay.draws.get(name, ())
            (train, drawn), values = repeat(
                step, (train, draws), per_device(key_update, axis_name), due, schedules[name].most
            )
            if name in replay.draws:
                # The first round draws from little, often: it does not count (Delta-IRIS).
                counts = jnp.where(is_first, draws, drawn)
                replay = replay._replace(draws={**replay.draws, name: counts})
            metrics |= {x if update.joint else f"{name}/{x}": y for x, y in values.items()}
            for learner in ("world_model", "agent") if update.joint else (name,):
                metrics[f"{learner}/updates"] = due.astype(jnp.float32)
        iteration = state.iteration + 1
        return state._replace(train=train, replay=replay, key=key, iteration=iteration), metrics

    def sample_and_update(
        replay: Replay, update: Update, state: _Repeated, key: jax.Array
    ) -> tuple[_Repeated, Metrics]:
        train, draws = state
        key_sample, key_step = jax.random.split(key)
        draws, batch = update.sample(replay, draws, key_sample)
        train, metrics = update.step(train, batch, key_step)
        return (train, draws), metrics

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
