"""What ``experiments.benchmark`` measures of a preset."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from worldmodels_jax import envs
from worldmodels_jax.agents.imagination import dream, policy_of
from worldmodels_jax.models.git_storm import GitStormConfig
from worldmodels_jax.models.world_model import ModelConfig, make_world_model
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.learner import dream_contexts, make_updates
from worldmodels_jax.training.parts import Parts
from worldmodels_jax.types import Environment, EnvSpec, Record, TimeStep

_UPDATES = {
    "tokenizer": "tokenizer update",
    "world_model": "world-model update",
    "agent": "agent update, with dreams",
}

# (T_draft, T_revise) of the MaskGIT priors, once each.
_ROUNDS = {"maskgit, T=1": (1, 1), "maskgit, T_revise=4": (1, 4)}


class Part(NamedTuple):
    """Something to measure.

    Attributes:
      name: as in the table.
      function: pure.
      args: its arguments.
      steps: agent steps that a call stands for, to tell the speed in steps per second.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    steps: int | None = None


def random_records(spec: EnvSpec, shape: tuple[int, ...], seed: int = 0) -> Record:
    """Records ``(*shape, ...)`` of noise, with no episode ends."""
    rng = np.random.default_rng(seed)
    size = (*shape, *spec.observation_shape)
    image = spec.observation_dtype == "uint8"
    actions = (
        rng.integers(0, spec.num_actions, shape, np.int32)
        if spec.discrete
        else rng.uniform(-1, 1, (*shape, spec.num_actions)).astype(np.float32)
    )
    return Record(
        observation=jnp.asarray(
            rng.integers(0, 256, size, np.uint8) if image else rng.normal(size=size), None
        ).astype(spec.observation_dtype),
        action=jnp.asarray(actions),
        reward=jnp.zeros(shape, jnp.float32),
        terminated=jnp.zeros(shape, bool),
        truncated=jnp.zeros(shape, bool),
        is_first=jnp.zeros(shape, bool),
    )


class SteppedByHost:
    """A JAX-native environment that takes every step from Python, as an emulator is stepped."""

    def __init__(self, env: Environment, num_envs: int, seed: int) -> None:
        self.spec, self.num_envs = env.spec, num_envs
        env = envs.batch(envs.auto_reset(env), num_envs)
        self._reset, self._step = jax.jit(env.reset), jax.jit(env.step)
        self._key = jax.random.key(seed)

    def _next_key(self) -> jax.Array:
        self._key, key = jax.random.split(self._key)
        return key

    def reset(self) -> TimeStep:
        self._state, time_step = self._reset(self._next_key())
        return jax.tree.map(np.asarray, time_step)

    def step(self, actions: np.ndarray) -> TimeStep:
        self._state, time_step = self._step(self._state, actions, self._next_key())
        return jax.tree.map(np.asarray, time_step)

    def save_state(self) -> bytes | None:
        return None

    def load_state(self, state: bytes) -> None:
        raise ValueError("it saves no state, so there is none to load.")

    def close(self) -> None:
        """Nothing is open."""


def warm(config: Config) -> Config:
    """The config with the shortest warm-up its sequences allow: the second chunk only trains."""
    t = config.training
    iterations = max(t.batch_length, t.dream_context + t.dream_starts - 1)
    training = dataclasses.replace(t, warmup=iterations * config.env.num_envs, chunk=iterations)
    return dataclasses.replace(config, training=training)


def parts_of(config: Config, parts: Parts) -> Iterator[Part]:
    """What is measured of a preset, but for whole training steps."""
    t, spec, model, agent = config.training, parts.spec, parts.world_model, parts.agent
    key = jax.random.key(0)
    updates = make_updates(t, model, agent)
    state = jax.jit(updates.init)(key)
    context = random_records(spec, dream_contexts(t))
    variables, agent_variables = state.world_model.variables, state.agent.variables
    for name, update in updates.parts.items():
        batch = random_records(spec, update.batch)
        yield Part(
            "joint update" if update.joint else _UPDATES[name], update.step, (state, batch, key)
        )
    yield Part(
        "prefill",
        lambda v, c, k: model.observe(v, c, k, t.horizon, t.dream_starts),
        (variables, context, key),
    )

    def dreams(v: Any, a: Any, c: Record, k: jax.Array) -> Any:
        return dream(model, v, policy_of(agent, a), c, k, t.horizon, t.dream_starts)

    yield Part("dreams", dreams, (variables, agent_variables, context, key))
    dreamed = jax.eval_shape(dreams, variables, agent_variables, context, key)
    dreamed = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dreamed)
    yield Part(
        "actor-critic loss and gradient",
        jax.grad(lambda a, d: agent.loss(a, d)[0]),
        (agent_variables, dreamed),
    )
    memory = parts.actor.init(config.env.num_envs)
    memory = memory._replace(records=random_records(spec, memory.records.reward.shape))
    yield Part(
        "act", parts.actor.act, (variables, agent_variables, memory, key), config.env.num_envs
    )
    if parts.env is not None:
        env, steps = envs.batch(envs.auto_reset(parts.env), config.env.num_envs), 100
        env_state, time_step = jax.jit(env.reset)(key)

        def run(env_state: Any, time_step: Any, key: jax.Array) -> Any:
            memory = parts.actor.init(config.env.num_envs)

            def body(carry: Any, k: jax.Array) -> Any:
                return env.step(carry[0], parts.actor.act_random(memory, k)[1], k), None

            return jax.lax.scan(body, (env_state, time_step), jax.random.split(key, steps))[0]

        yield Part(
            "environment step x 100",
            run,
            (env_state, time_step, key),
            steps * config.env.num_envs,
        )


def decoding_parts(config: Config, spec: EnvSpec) -> Iterator[Part]:
    """One imagined step of the preset's dreams; of GIT-STORM with each prior and its rounds."""
    t, key = config.training, jax.random.key(0)
    choices: dict[str, ModelConfig] = {"decode step": config.model}
    if isinstance(config.model, GitStormConfig):
        choices = {"decode step, mlp": dataclasses.replace(config.model, prior="mlp")}
        for name, (draft, revise) in _ROUNDS.items():
            head = dataclasses.replace(
                config.model.maskgit, draft_rounds=draft, revise_rounds=revise, repetitions=1
            )
            choices[f"decode step, {name}"] = dataclasses.replace(
                config.model, prior="maskgit", maskgit=head
            )
    for name, choice in choices.items():
        model = make_world_model(choice, spec, None, jnp.float32)
        variables = jax.jit(model.init)(key)
        context = random_records(spec, (t.dream_batch, t.dream_context))
        observe = jax.jit(model.observe, static_argnums=3)
        carry, _ = observe(variables, context, key, t.horizon)
        args = (variables, carry, context.action[:, -1], key)
        yield Part(name, model.imagine, args)
