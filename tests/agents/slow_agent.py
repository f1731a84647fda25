"""The actor-critic's losses in NumPy, slowly, and random variables and dreams to feed them."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from worldmodels_jax.agents.actor_critic import ActorCriticConfig, Dream, make_actor_critic
from worldmodels_jax.ops.returns import ReturnScale
from worldmodels_jax.types import EnvSpec

L, B, F, A, WIDTH, BINS = 5, 6, 4, 3, 8, 41
DISCRETE = EnvSpec("discrete", (F,), "float32", A, True, 10)
CONTINUOUS = EnvSpec("continuous", (F,), "float32", A, False, 10)


def make(spec=DISCRETE, **changes):
    sizes = {"width": WIDTH, "num_bins": BINS, "gamma": 0.9, "lambda_": 0.5, "entropy_scale": 0.5}
    config = ActorCriticConfig(**(sizes | changes))
    return config, make_actor_critic(config, F, spec)


def random_variables(agent, seed=0):
    """Random weights everywhere: the critic starts at zero, which would hide most mistakes."""
    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), shapes
    )
    return {**variables, "return_scale": ReturnScale(jnp.float32(-3.0), jnp.float32(2.0))}


def random_dream(discrete=True, seed=0):
    rng = np.random.default_rng(seed)
    action = rng.integers(0, A, (L, B)) if discrete else rng.normal(0, 0.5, (L, B, A))
    dream = Dream(
        features=rng.normal(size=(L + 1, B, F)),
        action=action,
        reward=rng.normal(0, 3, (L, B)),
        continuation=rng.uniform(0.2, 1.0, (L, B)),  # a few predicted ends in every dream
        weight=np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0]),
    )
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.int32 if x.dtype == int else jnp.float32), dream
    )


# A slow version of the whole loss


def mlp(params, x):
    for i in range(2):
        x = x @ params[f"Dense_{i}"]["kernel"]
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        x = x * params[f"LayerNorm_{i}"]["scale"] + params[f"LayerNorm_{i}"]["bias"]
        x = np.maximum(x, 0.0)
    return x @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]


STEPS = np.linspace(-20, 20, BINS)
BIN_CENTRES = {
    "symlog_twohot": STEPS,
    "symexp_twohot": np.sign(STEPS) * np.expm1(np.abs(STEPS)),
}


def read_out(config, logits):
    """What the critic's outputs mean."""
    if config.critic_head == "mse":
        return logits[..., 0]
    mean = scipy.special.softmax(logits, -1) @ BIN_CENTRES[config.critic_head]
    return mean if config.critic_head == "symexp_twohot" else np.sign(mean) * np.expm1(np.abs(mean))


def critic_loss(config, logits, target):
    """Squared error or two-hot cross-entropy, one scalar at a time."""
    if config.critic_head == "mse":
        return (logits[..., 0] - target) ** 2
    log_probs, bins = scipy.special.log_softmax(logits, -1), BIN_CENTRES[config.critic_head]
    out = np.zeros(target.shape)
    for index in np.ndindex(target.shape):
        y = target[index]
        if config.critic_head == "symlog_twohot":
            y = np.sign(y) * np.log1p(abs(y))
        low = int(np.searchsorted(bins, y, side="right")) - 1
        share = (y - bins[low]) / (bins[low + 1] - bins[low])
        out[index] = -(1 - share) * log_probs[index][low] - share * log_probs[index][low + 1]
    return out


def lambda_return(config, reward, discount, values):
    """Equation 5.9, or with the value of the current state."""
    out = np.zeros(reward.shape)
    following = values[-1]
    for step in reversed(range(len(reward))):
        value = values[step + 1] if config.bootstrap == "next" else values[step]
        mixed = (1 - config.lambda_) * value + config.lambda_ * following
        out[step] = following = reward[step] + discount[step] * mixed
    return out


def slow_policy(config, spec, params, features, action):
    """Log-probability and entropy of the actions."""
    output = mlp(params["actor"]["params"], features)
    if spec.discrete:
        probs = (1 - config.actor_unimix) * scipy.special.softmax(output, -1)
        probs = probs + config.actor_unimix / A
        log_prob = np.log(np.take_along_axis(probs, action[..., None], -1)[..., 0])
        return log_prob, -(probs * np.log(probs)).sum(-1)
    normal = scipy.stats.norm(
        np.tanh(output[..., :A]), 0.1 + 0.9 * scipy.special.expit(output[..., A:] + 2.0)
    )
    return normal.logpdf(action).sum(-1), normal.entropy().sum(-1)


def goes_on(config, dream):
    """Continuations as the agent reads them."""
    if config.continuation == "threshold":
        return (dream.continuation > 0.5).astype(float)
    return dream.continuation


def frozen_quantities(config, variables, dream):
    """What no gradient reaches: weights, targets, advantages and the new scale."""
    continuation = goes_on(config, dream)
    weight = np.ones((L, B)) * dream.weight
    if config.mask_after_end:
        for step in range(1, L):
            weight[step] = weight[step - 1] * continuation[step - 1]
    if config.weighting == "discounted":
        for step in range(L):
            weight[step] = weight[step] * config.gamma ** (step + 1)
    values = read_out(config, mlp(variables["params"]["critic"]["params"], dream.features))
    slow = read_out(config, mlp(variables["slow_critic"]["params"], dream.features))
    discount = config.gamma * continuation
    target = lambda_return(config, dream.reward, discount, values)
    regulariser = slow[:-1]
    if config.critic_regulariser == "ema_return":
        regulariser = lambda_return(config, dream.reward, discount, slow)
    counted = target[:, dream.weight > 0]
    scale = [
        config.return_decay * old + (1 - config.return_decay) * np.quantile(counted, share)
        for old, share in zip(variables["return_scale"], (0.05, 0.95), strict=True)
    ]
    spread = max(1.0, scale[1] - scale[0]) if config.normalise_returns else 1.0
    advantage = (target - values[:-1]) / spread
    return weight, target, regulariser, advantage, scale


def slow_loss(config, spec, params, dream, frozen):
    weight, target, regulariser, advantage, _ = frozen
    log_prob, entropy = slow_policy(config, spec, params, dream.features[:-1], dream.action)
    logits = mlp(params["critic"]["params"], dream.features[:-1])
    terms = (
        -advantage * log_prob
        - config.entropy_scale * entropy
        + critic_loss(config, logits, target)
        + critic_loss(config, logits, regulariser)
    )
    total = weight.sum() if config.weighting == "survival" else weight.size
    return (weight * terms).sum() / total


def replay_targets(config, variables, dream, batch, features):
    """Lambda-returns of real rewards ``(B, T)``, the values the critic is drawn to, and weights."""
    dreamed = read_out(config, mlp(variables["params"]["critic"]["params"], dream.features))
    discount = config.gamma * goes_on(config, dream)
    rows, length = batch.reward.shape
    start = lambda_return(config, dream.reward, discount, dreamed)[0].reshape(rows, length)
    out, weight = start.copy(), np.zeros((rows, length))
    for b in range(rows):
        for t in reversed(range(length - 1)):
            if batch.terminated[b, t] or batch.truncated[b, t] or batch.is_first[b, t + 1]:
                continue  # no transition leaves it: what it is worth is what was dreamed
            mixed = (1 - config.lambda_) * start[b, t + 1] + config.lambda_ * out[b, t + 1]
            goes = 0.0 if batch.terminated[b, t + 1] else config.gamma
            out[b, t], weight[b, t] = batch.reward[b, t + 1] + goes * mixed, 1.0
    slow = read_out(config, mlp(variables["slow_critic"]["params"], features))
    return out[:, :-1], slow[:, :-1], weight[:, :-1]


def slow_replay_loss(config, critic, features, targets):
    """The mean over all records but the last of a sequence."""
    returns, slow, weight = targets
    logits = mlp(critic["params"], features[:, :-1])
    both = critic_loss(config, logits, returns) + critic_loss(config, logits, slow)
    return (weight * both).mean()


def in_numpy(tree):
    return jax.tree.map(lambda x: np.asarray(x, int if x.dtype == jnp.int32 else float), tree)
