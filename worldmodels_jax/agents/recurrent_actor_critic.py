"""The recurrent actor-critic for policies on frames: IRIS's and Delta-IRIS's.

Micheli et al. (2023) and (2024, section 3.4). Convolutions and an LSTM are shared by actor and
critic; before a dream the LSTM is shown the real frames that came before (the burn-in). The dream
is rolled out without gradient, and all its frames are then evaluated again in one batch, so that
the convolutions' gradients are not taken inside a loop.
"""

import dataclasses
import math
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from worldmodels_jax.agents.actor_critic import (
    Agent,
    Dream,
    History,
    dream_metrics,
    policy_distribution,
)
from worldmodels_jax.nn.recurrent_policy import LSTMState, RecurrentPolicy
from worldmodels_jax.ops import returns
from worldmodels_jax.ops.collectives import masked_mean
from worldmodels_jax.ops.frames import to_square
from worldmodels_jax.ops.scalar_head import ScalarKind, scalar_head
from worldmodels_jax.types import EnvSpec, Metrics, PyTree


@dataclasses.dataclass(frozen=True)
class RecurrentActorCriticConfig:
    """The agent; the defaults are Delta-IRIS's for Crafter.

    Attributes:
      encoder: resnet is Delta-IRIS's, pool IRIS's, see nn.recurrent_policy.
      image_size: side to which frames are padded with zeros.
      channels: of each level of the convolutions.
      latent: channels of their map (resnet).
      halve_after: levels that end in a halving (resnet).
      patch: side of the patches at the entrance, 1 for none (resnet).
      width: of the LSTM.
      critic_head: what the critic's outputs mean, see ops.scalar_head.
      num_bins: of a two-hot critic.
      gamma: discount per agent step.
      lambda_: mixing of the lambda-return.
      entropy_scale: eta, weight of the policy's entropy.
      target: whose values are the baseline and make the return: an EMA copy's of the whole network
        (Delta-IRIS) or the critic's own (IRIS).
      slow_decay: of the EMA copy per update.
      mask_after_end: weight 0 for dreamed steps after the first end; IRIS keeps 1.
    """

    encoder: Literal["resnet", "pool"] = "resnet"
    image_size: int = 64
    channels: tuple[int, ...] = (32, 32, 64, 64, 128)
    latent: int = 16
    halve_after: tuple[int, ...] = (0, 2, 3)
    patch: int = 1
    width: int = 512
    critic_head: ScalarKind = "symlog_twohot"
    num_bins: int = 255
    gamma: float = 0.997
    lambda_: float = 0.95
    entropy_scale: float = 0.001
    target: Literal["ema", "online"] = "ema"
    slow_decay: float = 0.995
    mask_after_end: bool = True


def make_recurrent_actor_critic(
    config: RecurrentActorCriticConfig,
    feature_size: int,
    spec: EnvSpec,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> Agent:
    """An actor-critic with an LSTM for world models whose features are frames.

        R_l = r_l + gamma c_l [(1 - lambda) V(x_{l+1}) + lambda R_{l+1}],   R_L = V(x_L)
        L = -mean[log pi(a_l) sg(R_l - V(x_l))] - eta mean[H(pi_l)] + mean[L_critic(R_l)]

    over the dreamed steps up to the first end, V being the target's.

    Args:
      config: hyper-parameters.
      feature_size: F, of a frame ``(H, W, C)`` in [0, 1], flattened.
      spec: the environment's frames and actions.
      axis_name: a mapped axis the dreams are split over: masked means are then those of all dreams,
        provided the caller averages loss and gradients over the axis.
      dtype: of convolutions and LSTM; parameters, heads, states and losses stay float32.

    Returns:
      The bundle of pure functions; its memory is the LSTM's state.

    Raises:
      ValueError: if features are no frames of the environment, or sizes do not fit.
    """
    _validate(config, feature_size, spec)
    head = scalar_head(config.critic_head, config.num_bins)
    network = RecurrentPolicy(
        encoder=config.encoder,
        channels=config.channels,
        latent=config.latent,
        halve_after=config.halve_after,
        patch=config.patch,
        width=config.width,
        actions=spec.num_actions if spec.discrete else 2 * spec.num_actions,
        values=head.size,
        zero_value=config.critic_head != "mse",
        dtype=dtype,
    )

    def init_memory(batch: int) -> LSTMState:
        return jnp.zeros((batch, config.width)), jnp.zeros((batch, config.width))

    def encode(params: PyTree, features: jax.Array) -> jax.Array:
        frames = features.reshape(*features.shape[:-1], *spec.observation_shape)
        square = to_square(frames, config.image_size)
        return network.apply({"params": params}, square, method="encode")

    def lstm(params: PyTree, memory: LSTMState, encoded: jax.Array) -> LSTMState:
        return network.apply({"params": params}, memory, encoded, method="step")

    def heads(params: PyTree, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        return network.apply({"params": params}, hidden, method="heads")

    def init(key: jax.Array) -> PyTree:
        frames = jnp.zeros((1, config.image_size, config.image_size, spec.observation_shape[-1]))
        params = network.init(key, frames, init_memory(1))["params"]
        if config.target == "online":
            return {"params": params}
        # A copy of its own: the loop donates its buffers, and one buffer cannot be given twice.
        return {"params": params, "target": jax.tree.map(jnp.copy, params)}

    def policy(variables: PyTree, memory: LSTMState, features: jax.Array) -> tuple[Any, LSTMState]:
        params = variables["params"]
        memory = lstm(params, memory, encode(params, features))
        return policy_distribution(heads(params, memory[0])[0], discrete=spec.discrete), memory

    def act(
        variables: PyTree, memory: LSTMState, features: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, LSTMState]:
        distribution, memory = policy(variables, memory, features)
        return distribution.sample(seed=key), memory

    def act_greedy(
        variables: PyTree, memory: LSTMState, features: jax.Array
    ) -> tuple[jax.Array, LSTMState]:
        distribution, memory = policy(variables, memory, features)
        return distribution.mode(), memory

    def unroll(
        params: PyTree, memory: LSTMState, features: jax.Array, is_first: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        """The memory after ``(T, B, F)``, and h at every step; emptied where an episode begins."""

        def step(
            memory: LSTMState, inputs: tuple[jax.Array, jax.Array]
        ) -> tuple[LSTMState, jax.Array]:
            encoded, first = inputs
            memory = jax.tree.map(lambda x: jnp.where(first[:, None], 0.0, x), memory)
            memory = lstm(params, memory, encoded)
            return memory, memory[0]

        return jax.lax.scan(step, memory, (encode(params, features), is_first))

    def outputs(
        params: PyTree, history: History, features: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The heads at dreamed frames ``(T, B, F)``, after a burn-in without gradient."""
        batch = features.shape[1]
        memory = init_memory(batch)
        if history.features.shape[0]:
            memory, _ = unroll(params, memory, history.features, history.is_first[:-1])
        first = jnp.zeros(features.shape[:2], bool).at[0].set(history.is_first[-1])
        _, hidden = unroll(params, jax.lax.stop_gradient(memory), features, first)
        return heads(params, hidden)

    def loss(variables: PyTree, dream: Dream) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        chex.assert_rank([dream.features, dream.reward, dream.weight], [3, 2, 1])
        assert dream.history is not None
        rest = {name: value for name, value in variables.items() if name != "params"}
        features = jax.lax.stop_gradient(dream.features)
        if config.target == "ema":
            logits, values = outputs(variables["params"], dream.history, features[:-1])
            target_values = head.mean(outputs(variables["target"], dream.history, features)[1])
        else:
            logits, values = outputs(variables["params"], dream.history, features)
            target_values = head.mean(values)
            logits, values = logits[:-1], values[:-1]
        target_values = jax.lax.stop_gradient(target_values)
        discount = config.gamma * dream.continuation
        target = returns.lambda_returns(
            dream.reward, discount, target_values[1:], target_values[-1], config.lambda_
        )
        weight = jnp.broadcast_to(dream.weight, dream.reward.shape)
        if config.mask_after_end:
            weight = weight.at[1:].multiply(jnp.cumprod(dream.continuation[:-1], axis=0))

        def mean(x: jax.Array) -> jax.Array:
            return masked_mean(x, weight, axis_name)

        distribution = policy_distribution(logits, discrete=spec.discrete)
        log_prob, entropy = distribution.log_prob(dream.action), mean(distribution.entropy())
        advantage = target - target_values[:-1]
        actor_loss = mean(-advantage * log_prob)
        critic_loss = mean(head.loss(values, target))
        total = actor_loss + critic_loss - config.entropy_scale * entropy
        metrics = {
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "actor_entropy": entropy,
            **dream_metrics(
                mean, target, target_values, advantage, dream.reward, dream.continuation, axis_name
            ),
        }
        return total, (rest, metrics)

    def refresh(variables: PyTree) -> PyTree:
        if config.target == "online":
            return variables
        step = 1.0 - config.slow_decay
        target = optax.incremental_update(variables["params"], variables["target"], step)
        return {**variables, "target": target}

    return Agent(init, act, act_greedy, loss, refresh, init_memory)


def _validate(config: RecurrentActorCriticConfig, feature_size: int, spec: EnvSpec) -> None:
    shape = spec.observation_shape
    if len(shape) != 3 or math.prod(shape) != feature_size:
        raise ValueError(
            f"the recurrent actor-critic acts on frames, but the features of this world model are "
            f"vectors of {feature_size} and observations of {spec.name!r} have the shape {shape}: "
            "choose IRIS or Delta-IRIS, or an agent of type ActorCriticConfig."
        )
    if max(shape[:2]) > config.image_size:
        raise ValueError(
            f"frames of {shape[0]}x{shape[1]} do not fit agent.image_size={config.image_size}: "
            "raise it, or resize the frames."
        )
    halvings = len(config.halve_after) if config.encoder == "resnet" else len(config.channels)
    stride = 2**halvings * (config.patch if config.encoder == "resnet" else 1)
    if config.image_size % stride:
        raise ValueError(
            f"agent.image_size={config.image_size} is not a multiple of {stride}, two for each "
            "halving of its convolutions (agent.channels, agent.halve_after, agent.patch)."
        )
