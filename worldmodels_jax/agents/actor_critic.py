"""The λ-return actor-critic that learns inside any world model's dreams.

GIT-STORM section 5.7, equations 5.8 to 5.13 (after STORM and DreamerV3), with the misprint of 5.9
corrected: ``G_l = r_l + gamma c_l [(1 - lambda) V(s_{l+1}) + lambda G_{l+1}]``, ``G_L = V(s_L)``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import distrax
import jax
import jax.numpy as jnp
import optax

from worldmodels_jax.nn.linear import SiluMLP
from worldmodels_jax.nn.mlp import MLP
from worldmodels_jax.ops import categorical, returns
from worldmodels_jax.ops.collectives import masked_mean, pmean
from worldmodels_jax.ops.scalar_head import ScalarKind, scalar_head
from worldmodels_jax.types import EnvSpec, Metrics, PyTree, Record


@dataclasses.dataclass(frozen=True)
class ActorCriticConfig:
    """The actor-critic; the defaults are GIT-STORM's.

    Attributes:
      width: units of the hidden layers of actor and critic.
      depth: number of hidden layers.
      network: layers of actor and critic, Linear without bias, LayerNorm, ReLU (git_storm), or
        Linear, RMSNorm, SiLU, with an actor that starts almost uniform (dreamer_v3, of 2024). The
        critic starts at zero in either.
      critic_head: symlog_twohot (GIT-STORM, DreamerV3 of 2023), symexp_twohot (DreamerV3 of 2024)
        or mse (for comparison).
      num_bins: bins of a two-hot critic.
      gamma: discount per agent step.
      lambda_: mixing of the lambda-return.
      entropy_scale: eta, weight of the policy's entropy.
      actor_unimix: share of the uniform distribution in a discrete policy.
      slow_decay: sigma, decay of the EMA critic per update.
      critic_regulariser: what the critic is drawn to besides the return: the EMA critic's value
        (equation 5.11) or the return computed with the EMA critic (public STORM).
      bootstrap: value in the lambda-return, of the next state (equation 5.9) or of the current one
        (public STORM).
      continuation: predicted continuations as 0/1 at one half, or as probabilities.
      mask_after_end: weight 0 for dreamed steps after a predicted end; public STORM keeps 1.
      weighting: survival weighs a dreamed step by the chance that the dream has not ended before it
        and takes the mean over the sum of weights; discounted multiplies gamma^(l+1) into step l's
        weight and takes the mean over all steps (DreamerV3).
      normalise_returns: divide advantages by the range of the returns where that is above 1.
      return_decay: decay of the two percentile EMAs of the return normaliser.
    """

    width: int = 512
    depth: int = 2
    network: Literal["git_storm", "dreamer_v3"] = "git_storm"
    critic_head: ScalarKind = "symlog_twohot"
    num_bins: int = 255
    gamma: float = 0.985
    lambda_: float = 0.95
    entropy_scale: float = 3e-4
    actor_unimix: float = 0.0
    slow_decay: float = 0.98
    critic_regulariser: Literal["ema_value", "ema_return"] = "ema_value"
    bootstrap: Literal["next", "current"] = "next"
    continuation: Literal["threshold", "probability"] = "threshold"
    mask_after_end: bool = True
    weighting: Literal["survival", "discounted"] = "survival"
    normalise_returns: bool = True
    return_decay: float = 0.99


class History(NamedTuple):
    """What came before a dream, for policies with a memory: C frames, the last of them s_0."""

    features: jax.Array  # (C-1, B, F), of all but the last
    is_first: jax.Array  # (C, B) bool


class Dream(NamedTuple):
    """A dreamed trajectory: L actions, L + 1 states, time first."""

    features: jax.Array  # (L+1, B, F), s_0..s_L
    action: jax.Array  # (L, B) int32 or (L, B, A) float32, a_0..a_{L-1}
    reward: jax.Array  # (L, B), predicted on arrival at s_{l+1}
    continuation: jax.Array  # (L, B), predicted probability of not having ended at s_{l+1}
    weight: jax.Array  # (B,) 1 where the dream starts from a state that has a future, else 0
    history: History | None = None  # None for policies without memory


ReplayLoss = Callable[[PyTree, Dream, Record, jax.Array], tuple[jax.Array, Metrics]]


class Agent(NamedTuple):
    """A behaviour learner as pure functions; ``variables`` hold ``"params"`` and agent state.

    Attributes:
      init: ``(key) -> variables``.
      act: ``(variables, memory, features (B, F), key) -> action (B, ...), memory``, sampled.
      act_greedy: ``(variables, memory, features (B, F)) -> action (B, ...), memory``, the mode.
      loss: ``(variables, dream) -> loss, (new_agent_state, metrics)``, without a gradient to the
        dream.
      refresh: ``(variables) -> variables``, after every optimiser step (the EMA critic).
      init_memory: ``(batch) -> memory``, what the policy remembers of no frames; () if it acts on
        the newest features alone.
      replay_loss: ``(variables, dream of B T, batch (B, T, ...), features (B, T, F)) -> loss,
        metrics``: the critic's loss on the states of real records, whose features (B, T, F) the
        gradient reaches. The dreams begin at these states, in the order of sequences, then of time.
        None for agents that cannot be trained jointly with the world model.
    """

    init: Callable[[jax.Array], PyTree]
    act: Callable[[PyTree, PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]
    act_greedy: Callable[[PyTree, PyTree, jax.Array], tuple[jax.Array, PyTree]]
    loss: Callable[[PyTree, Dream], tuple[jax.Array, tuple[PyTree, Metrics]]]
    refresh: Callable[[PyTree], PyTree]
    init_memory: Callable[[int], PyTree] = lambda batch: ()
    replay_loss: ReplayLoss | None = None

    @property
    def has_memory(self) -> bool:
        """Whether the policy remembers more than the newest features."""
        return bool(jax.tree.leaves(jax.eval_shape(lambda: self.init_memory(1))))


def policy_distribution(output: jax.Array, *, discrete: bool, unimix: float = 0.0) -> Any:
    """The policy's distribution from the actor's output.

    Discrete: categorical over A logits. Continuous (2A outputs m, s, as in DreamerV3): independent
    Normal with mean ``tanh(m)`` and standard deviation ``0.1 + 0.9 sigmoid(s + 2)``.

    Args:
      output: ``(..., A)`` or ``(..., 2A)``.
      discrete: which of the two.
      unimix: share of the uniform distribution, discrete only.

    Returns:
      A distrax distribution with ``sample``, ``mode``, ``log_prob`` and ``entropy``.
    """
    if discrete:
        return distrax.Categorical(logits=categorical.unimix_log_probs(output, unimix))
    mean, spread = jnp.split(output, 2, axis=-1)
    return distrax.Independent(
        distrax.Normal(jnp.tanh(mean), 0.1 + 0.9 * jax.nn.sigmoid(spread + 2.0)),
        reinterpreted_batch_ndims=1,
    )


def dream_metrics(
    mean: Callable[[jax.Array], jax.Array],
    target: jax.Array,
    values: jax.Array,
    advantage: jax.Array,
    reward: jax.Array,
    continuation: jax.Array,
    axis_name: str | None,
) -> Metrics:
    """What every agent tells of its dreams.

    Args:
      mean: of ``(L, B)``, over the steps that count.
      target: ``(L, B)`` returns.
      values: ``(L+1, B)``.
      advantage: ``(L, B)``.
      reward: ``(L, B)``.
      continuation: ``(L, B)``.
      axis_name: the mapped axis ``mean`` reduces over, if any.
    """
    first, second = (pmean(mean(target**power), axis_name) for power in (1, 2))
    return {
        "return_mean": first,
        "return_std": jnp.sqrt(jnp.maximum(second - first**2, 0.0)),
        "value_mean": mean(values[:-1]),
        "dream_reward": mean(reward),
        "dream_continuation": mean(continuation),
        "advantage_magnitude": mean(jnp.abs(advantage)),
    }


def make_actor_critic(
    config: ActorCriticConfig,
    feature_size: int,
    spec: EnvSpec,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> Agent:
    """An actor-critic for features of a world model.

    Args:
      config: hyper-parameters.
      feature_size: F.
      spec: the environment's action space.
      axis_name: a mapped axis the dreams are split over: percentiles and masked means are then
        those of all dreams, provided the caller averages loss and gradients over the axis.
      dtype: of the hidden layers' computation; parameters, outputs and losses stay float32.

    Returns:
      The bundle of pure functions.
    """
    outputs = spec.num_actions if spec.discrete else 2 * spec.num_actions
    head = scalar_head(config.critic_head, config.num_bins)
    sizes = (config.width, config.depth)
    actor: Any
    critic: Any
    if config.network == "dreamer_v3":
        actor = SiluMLP(*sizes, outputs, output_scale=0.01, dtype=dtype)
        critic = SiluMLP(*sizes, head.size, output_scale=0.0, dtype=dtype)
    else:
        actor = MLP(*sizes, outputs, dtype=dtype)
        critic = MLP(*sizes, head.size, zero_output=True, dtype=dtype)

    def distribution(params: PyTree, features: jax.Array) -> Any:
        output = actor.apply(params["actor"], features)
        return policy_distribution(output, discrete=spec.discrete, unimix=config.actor_unimix)

    def value(params: PyTree, features: jax.Array) -> jax.Array:
        return head.mean(critic.apply(params, features))

    def init(key: jax.Array) -> PyTree:
        key_actor, key_critic = jax.random.split(key)
        example = jnp.zeros((1, feature_size))
        critic_params = critic.init(key_critic, example)
        return {
            "params": {"actor": actor.init(key_actor, example), "critic": critic_params},
            # A copy of its own: the loop donates its buffers, and one buffer cannot be given twice.
            "slow_critic": jax.tree.map(jnp.copy, critic_params),
            "return_scale": returns.init_return_scale(),
        }

    def act(
        variables: PyTree, memory: PyTree, features: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        return distribution(variables["params"], features).sample(seed=key), memory

    def act_greedy(
        variables: PyTree, memory: PyTree, features: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        return distribution(variables["params"], features).mode(), memory

    def lambda_return(reward: jax.Array, discount: jax.Array, values: jax.Array) -> jax.Array:
        inner = values[1:] if config.bootstrap == "next" else values[:-1]
        return returns.lambda_returns(reward, discount, inner, values[-1], config.lambda_)

    def goes_on(dream: Dream) -> jax.Array:
        if config.continuation == "threshold":
            return (dream.continuation > 0.5).astype(jnp.float32)
        return dream.continuation

    def loss(variables: PyTree, dream: Dream) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        chex.assert_rank([dream.features, dream.reward, dream.weight], [3, 2, 1])
        params, slow = variables["params"], variables["slow_critic"]
        dream = jax.lax.stop_gradient(dream)
        states, continuation = dream.features, goes_on(dream)
        survival = jnp.cumprod(continuation[:-1], axis=0)
        weight = jnp.concatenate([jnp.ones_like(continuation[:1]), survival])
        weight = dream.weight * (weight if config.mask_after_end else jnp.ones_like(weight))
        if config.weighting == "discounted":
            steps = jnp.arange(1, len(weight) + 1, dtype=jnp.float32)
            weight = weight * config.gamma ** steps[:, None]

        logits = critic.apply(params["critic"], states)
        values = jax.lax.stop_gradient(head.mean(logits))
        slow_values = value(slow, states)
        discount = config.gamma * continuation
        target = lambda_return(dream.reward, discount, values)
        scale = returns.update_return_scale(
            variables["return_scale"],
            target,
            decay=config.return_decay,
            valid=dream.weight > 0,
            axis_name=axis_name,
        )
        spread = returns.return_range(scale) if config.normalise_returns else jnp.ones(())

        def mean(x: jax.Array) -> jax.Array:
            return masked_mean(x, weight, axis_name)

        policy = distribution(params, states[:-1])
        log_prob, entropy = policy.log_prob(dream.action), policy.entropy()
        advantage = (target - values[:-1]) / spread
        actor_loss = mean(-advantage * log_prob)
        regulariser = slow_values[:-1]
        if config.critic_regulariser == "ema_return":
            regulariser = lambda_return(dream.reward, discount, slow_values)
        critic_loss = mean(head.loss(logits[:-1], target))
        slow_loss = mean(head.loss(logits[:-1], regulariser))
        total = actor_loss + critic_loss + slow_loss - config.entropy_scale * mean(entropy)
        if config.weighting == "discounted":
            # All terms are means over the sum of weights, which metrics stay; here it cancels.
            total = total * pmean(weight.mean(), axis_name)
        metrics = {
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "critic_slow_loss": slow_loss,
            "actor_entropy": mean(entropy),
            "return_scale": spread,
            **dream_metrics(mean, target, values, advantage, dream.reward, continuation, axis_name),
        }
        return total, ({"slow_critic": slow, "return_scale": scale}, metrics)

    def replay_loss(
        variables: PyTree, dream: Dream, batch: Record, features: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        chex.assert_shape(features, (*batch.reward.shape, feature_size))
        chex.assert_shape(dream.weight, (batch.reward.size,))
        params, slow = variables["params"]["critic"], variables["slow_critic"]
        frozen, dream = jax.lax.stop_gradient((params, dream))
        discount = config.gamma * goes_on(dream)
        dreamed = lambda_return(dream.reward, discount, value(frozen, dream.features))[0]
        # The dream's return is what a record is worth; time goes first, as in a dream.
        start = dreamed.reshape(batch.reward.shape).T
        reward, terminated, last, reset = (
            x.T for x in (batch.reward, batch.terminated, batch.is_last, batch.is_first)
        )
        # A reset follows a last record, or one whose environment was lost.
        last = last.at[:-1].set(last[:-1] | reset[1:]).astype(jnp.float32)
        target = returns.lambda_returns(
            reward[1:],
            config.gamma * (1.0 - terminated[1:]),
            start[1:],
            start[-1],
            config.lambda_ * (1.0 - last[1:]),
        )
        states = jnp.swapaxes(features[:, :-1], 0, 1)
        logits = critic.apply(params, states)
        slow_values = value(slow, jax.lax.stop_gradient(states))
        weight = 1.0 - last[:-1]
        critic_loss = (weight * head.loss(logits, target)).mean()
        slow_loss = (weight * head.loss(logits, slow_values)).mean()
        metrics = {
            "replay_critic_loss": critic_loss,
            "replay_critic_slow_loss": slow_loss,
            "replay_return_mean": masked_mean(target, weight, axis_name),
        }
        return critic_loss + slow_loss, metrics

    def refresh(variables: PyTree) -> PyTree:
        critic, slow = variables["params"]["critic"], variables["slow_critic"]
        slow = optax.incremental_update(critic, slow, 1.0 - config.slow_decay)
        return {**variables, "slow_critic": slow}

    return Agent(init, act, act_greedy, loss, refresh, replay_loss=replay_loss)
