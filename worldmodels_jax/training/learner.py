"""Gradient steps of the world model and the agent: pure functions, per device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from worldmodels_jax.agents.actor_critic import Agent
from worldmodels_jax.agents.imagination import dream, policy_of
from worldmodels_jax.data.replay import Replay, sample, sample_episodes
from worldmodels_jax.models.world_model import WorldModel
from worldmodels_jax.training.config import TrainingConfig
from worldmodels_jax.training.gradient import Learner, TrainState, gradient_step
from worldmodels_jax.training.joint import make_joint_step
from worldmodels_jax.training.optimisers import laprop, linear_kernels
from worldmodels_jax.types import Metrics, PyTree, Record

__all__ = ["Learner", "TrainState", "Update", "Updates", "dream_contexts", "make_updates"]

TOKENIZER = "tokenizer"  # the part of a world model that ``TrainingConfig.tokenizer`` is of


Step = Callable[[TrainState, Record, jax.Array], tuple[TrainState, Metrics]]
Sample = Callable[[Replay, PyTree, jax.Array], tuple[PyTree, Record]]


class Update(NamedTuple):
    """One kind of gradient step, and when it is due.

    Attributes:
      sample: ``(replay, draws, key) -> draws, batch``, see ``Replay.draws``.
      step: ``(state, batch, key) -> state, metrics``.
      batch: sequences of a batch and their length.
      ratio: updates per agent step.
      start: agent steps before the first, if later than the warm-up's.
      first: updates made beside the others when the first are due.
      joint: whether it is one of world model and agent together; metrics then have their learner's
        name in front.
    """

    sample: Sample
    step: Step
    batch: tuple[int, int]
    ratio: float
    start: int = 0
    first: int = 0
    joint: bool = False


class Updates(NamedTuple):
    """The gradient steps.

    Attributes:
      init: ``(key) -> TrainState``.
      parts: the kinds of them by name, in the order in which they are made: ``"tokenizer"`` where
        it is trained by itself, ``"world_model"`` on batches ``(B, T, ...)``, ``"agent"`` on
        contexts ``(B2, C, ...)``.
    """

    init: Callable[[jax.Array], TrainState]
    parts: dict[str, Update]


def dream_contexts(config: TrainingConfig) -> tuple[int, int]:
    """How many sequences are drawn for the dreams of an agent update, and their length."""
    starts = config.dream_starts
    return config.dream_batch // starts, config.dream_context + starts - 1


def _optimiser(
    config: TrainingConfig, lr: float, clip: float, eps: float = 1e-8, decay: float = 0.0
) -> Any:
    warmup = config.optimiser_warmup
    if config.optimiser == "laprop":
        return laprop(lr, warmup, clip=clip)
    rate = optax.linear_schedule(0.0, lr, warmup) if warmup else lr
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(rate, eps=eps, weight_decay=decay, mask=linear_kernels)
        if decay
        else optax.adam(rate, eps=eps),
    )


def make_updates(
    config: TrainingConfig, world_model: WorldModel, agent: Agent, axis_name: str | None = None
) -> Updates:
    """Build the gradient steps.

    Args:
      config: batch sizes and optimisers; sizes are per device.
      world_model: made with the same ``axis_name``.
      agent: made with the same ``axis_name``.
      axis_name: the mapped axis batches are split over, or None.

    Raises:
      ValueError: if ``config`` asks for a tokenizer that is trained by itself, or for joint
        updates, and the model or the agent has no such part.
    """
    if config.joint and (world_model.loss_and_states is None or agent.replay_loss is None):
        raise ValueError(
            "training.joint=True needs a world model with a state of each record (loss_and_states),"
            " such as DreamerV3's, and an agent of type ActorCriticConfig: set "
            "training.joint=False."
        )
    t = config.tokenizer
    model_optimiser = _optimiser(
        config, config.world_model_lr, config.world_model_clip, decay=config.world_model_decay
    )
    optimisers: dict[str | None, Any] = {None: model_optimiser}
    if t.ratio:
        rest = _apart_from_tokenizer(world_model)
        tokenizer_optimiser = _optimiser(config, t.lr, t.clip, decay=t.decay)
        optimisers = {TOKENIZER: tokenizer_optimiser, rest: model_optimiser}
    agent_optimiser = _optimiser(config, config.agent_lr, config.agent_clip, config.agent_eps)

    def init(key: jax.Array) -> TrainState:
        key_model, key_agent = jax.random.split(key)
        model_variables, agent_variables = world_model.init(key_model), agent.init(key_agent)
        params = model_variables["params"]
        states = {
            part: optimiser.init(params if part is None else params[part])
            for part, optimiser in optimisers.items()
        }
        return TrainState(
            Learner(model_variables, states.get(None, states)),
            Learner(agent_variables, agent_optimiser.init(agent_variables["params"])),
        )

    def make_model_step(part: str | None) -> Step:
        loss = world_model.loss if part is None else (world_model.parts or {})[part]

        def step(state: TrainState, batch: Record, key: jax.Array) -> tuple[TrainState, Metrics]:
            learner, metrics = gradient_step(
                lambda variables: loss(variables, batch, key),
                state.world_model,
                optimisers[part],
                axis_name,
                part,
            )
            return state._replace(world_model=learner), metrics

        return step

    def update_agent(
        state: TrainState, context: Record, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        dreamed = dream(
            world_model,
            state.world_model.variables,
            policy_of(agent, state.agent.variables),
            context,
            key,
            config.horizon,
            config.dream_starts,
        )
        learner, metrics = gradient_step(
            lambda variables: agent.loss(variables, dreamed),
            state.agent,
            agent_optimiser,
            axis_name,
        )
        learner = learner._replace(variables=agent.refresh(learner.variables))
        return state._replace(agent=learner), metrics

    def update(
        step: Step,
        batch: tuple[int, int],
        *schedule: Any,
        towards_end: bool = False,
    ) -> Update:
        return Update(_sampler(config, batch, towards_end), step, batch, *schedule)

    if config.joint:
        shape = (config.batch_size, config.batch_length)
        together = update(
            make_joint_step(
                config, world_model, agent, (model_optimiser, agent_optimiser), axis_name
            ),
            shape,
            config.world_model_ratio,
            config.world_model_start,
            config.world_model_first,
        )
        return Updates(init, {"world_model": together._replace(joint=True)})
    steps = {part: make_model_step(part) for part in optimisers}
    parts = {}
    if t.ratio:
        shape = (t.batch_size, t.batch_length)
        parts["tokenizer"] = update(steps.pop(TOKENIZER), shape, t.ratio, t.start, t.first)
    (step,) = steps.values()
    parts["world_model"] = update(
        step,
        (config.batch_size, config.batch_length),
        config.world_model_ratio,
        config.world_model_start,
        config.world_model_first,
    )
    parts["agent"] = update(
        update_agent,
        dream_contexts(config),
        config.agent_ratio,
        config.agent_start,
        towards_end=True,
    )
    return Updates(init, parts)


def _apart_from_tokenizer(world_model: WorldModel) -> str:
    parts = world_model.parts or {}
    if TOKENIZER not in parts:
        raise ValueError(
            "training.tokenizer.ratio trains a tokenizer by itself, but that of this world model "
            "learns with the rest of it: set it to 0."
        )
    (rest,) = parts.keys() - {TOKENIZER}
    return rest


def _sampler(config: TrainingConfig, batch: tuple[int, int], towards_end: bool) -> Sample:
    if config.sampling == "records":
        return lambda replay, draws, key: (draws, sample(replay, key, *batch))
    power = config.sampling_power
    return lambda replay, draws, key: sample_episodes(
        replay, draws, key, *batch, power=power, towards_end=towards_end
    )
