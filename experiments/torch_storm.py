"""A PyTorch STORM to time against, which ``experiments.benchmark_torch`` runs in its own process.

Written after public STORM (github.com/weipu-zhang/STORM), whose layers it has and whose order it
keeps, but in eager float32 throughout: a world-model update, dreams and an actor-critic update. As
there, the context of the dreams goes through the transformer a frame at a time, keys and values of
all tokens before are projected again for each, and reward and end are predicted for every one of
them. It learns nothing of use here, from noise; it needs PyTorch and nothing else of this project.

  python torch_storm.py '{"batch_size": 16, ...}'   # the fields of Sizes

It prints a line of JSON with the number of parameters of each part, then waits for names of parts
on its input, does each once and prints its wall and CPU seconds.
"""

import copy
import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shapes of the model and its batches, as in the presets."""

    batch_size: int
    batch_length: int
    dreams: int
    context: int
    horizon: int
    image: tuple[int, int, int]  # height and width, which the layers halve, and channels
    num_actions: int
    channels: tuple[int, ...]
    num_tokens: int
    num_classes: int
    width: int
    hidden: int
    heads: int
    layers: int
    max_length: int
    dropout: float
    num_bins: int
    agent_width: int
    agent_depth: int

    @property
    def latent(self) -> int:
        """Units of a latent as one-hot vectors."""
        return self.num_tokens * self.num_classes

    @property
    def features(self) -> tuple[int, int, int]:
        """Channels, height and width of the encoder's last features."""
        height, width, _ = self.image
        halvings = len(self.channels)
        return self.channels[-1], height >> halvings, width >> halvings


def _encoder(sizes: Sizes) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((sizes.image[2], *sizes.channels)):
        conv = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Flatten())


def _decoder(sizes: Sizes) -> nn.Sequential:
    channels = sizes.channels[::-1]
    layers: list[nn.Module] = [
        nn.Linear(sizes.latent, math.prod(sizes.features), bias=False),
        nn.Unflatten(1, sizes.features),
        nn.BatchNorm2d(channels[0]),
        nn.ReLU(inplace=True),
    ]
    for before, after in itertools.pairwise(channels):
        conv = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    last = nn.ConvTranspose2d(channels[-1], sizes.image[2], 4, stride=2, padding=1)
    return nn.Sequential(*layers, last)


def _mlp(inputs: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for units in (inputs, *[width] * (depth - 1)):
        layers += [nn.Linear(units, width, bias=False), nn.LayerNorm(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class _Block(nn.Module):
    """Post-norm attention and feed-forward."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, self.heads = sizes.width, sizes.heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, sizes.hidden), nn.Linear(sizes.hidden, width)
        self.drop, self.drop_weights = nn.Dropout(sizes.dropout), nn.Dropout(0.1)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(memory)), split(self.value(memory))
        scores = torch.matmul(query / math.sqrt(query.shape[-1]), key.transpose(2, 3))
        weights = F.softmax(scores.masked_fill(~mask, -1e9), dim=-1)
        y = torch.matmul(self.drop_weights(weights), value).transpose(1, 2).flatten(-2)
        x = self.norm_1(x + self.drop(self.out(y)))
        return self.norm_2(x + self.drop(self.down(F.relu(self.up(x)))))


class _WorldModel(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.width
        self.encoder, self.decoder = _encoder(sizes), _decoder(sizes)
        self.posterior = nn.Linear(math.prod(sizes.features), sizes.latent)
        self.prior = nn.Linear(width, sizes.latent)
        self.stem = nn.Sequential(
            nn.Linear(sizes.latent + sizes.num_actions, width, bias=False),
            nn.LayerNorm(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width, bias=False),
            nn.LayerNorm(width),
        )
        self.positions = nn.Embedding(sizes.max_length, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(_Block(sizes) for _ in range(sizes.layers))
        self.reward = _mlp(width, width, 2, sizes.num_bins)
        self.end = _mlp(width, width, 2, 1)

    def log_probs(self, x: Tensor) -> Tensor:
        """Of 1 % uniform and 99 % the softmax, ``(..., num_tokens, num_classes)``."""
        probs = F.softmax(x.unflatten(-1, (self.sizes.num_tokens, -1)), dim=-1)
        return torch.log(0.01 / self.sizes.num_classes + 0.99 * probs)

    def encode(self, frames: Tensor) -> Tensor:
        features = self.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self.log_probs(self.posterior(features))

    def embed(self, latent: Tensor, action: Tensor, position: int) -> Tensor:
        one_hot = F.one_hot(action, self.sizes.num_actions).float()
        x = self.stem(torch.cat([latent, one_hot], dim=-1))
        table = self.positions(torch.arange(self.sizes.max_length)).expand(x.shape[0], -1, -1)
        return self.norm(x + table[:, position : position + x.shape[1]])

    def sequence(self, latent: Tensor, action: Tensor) -> Tensor:
        x = self.embed(latent, action, 0)
        mask = torch.ones(x.shape[1], x.shape[1]).tril().bool()
        for block in self.blocks:
            x = block(x, x, mask)
        return x

    def token(
        self, latent: Tensor, action: Tensor, cache: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step: the next latent, h, reward and whether it ended; ``cache`` grows by one."""
        length = cache[0].shape[1] + 1
        x, mask = self.embed(latent, action, length - 1), torch.ones(1, length).bool()
        for i, block in enumerate(self.blocks):
            cache[i] = torch.cat([cache[i], x], dim=1)
            x = block(x, cache[i], mask)
        latent = _sample(self.log_probs(self.prior(x)))
        return latent, x, _value(self.reward(x)), self.end(x).squeeze(-1) > 0


def _sample(log_probs: Tensor) -> Tensor:
    distribution = torch.distributions.OneHotCategorical(logits=log_probs)
    probs = distribution.probs
    return (distribution.sample() + probs - probs.detach()).flatten(-2)


def _bins(number: int) -> Tensor:
    return torch.linspace(-20.0, 20.0, number)


def _value(logits: Tensor) -> Tensor:
    y = (F.softmax(logits, dim=-1) * _bins(logits.shape[-1])).sum(-1)
    return torch.sign(y) * torch.expm1(torch.abs(y))


def _two_hot_loss(logits: Tensor, target: Tensor) -> Tensor:
    number, bins = logits.shape[-1], _bins(logits.shape[-1])
    target = torch.sign(target) * torch.log1p(torch.abs(target))
    below = (torch.bucketize(target, bins) - 1).clamp(0, number - 2)
    share = ((target - bins[below]) / (bins[1] - bins[0])).unsqueeze(-1)
    two_hot = F.one_hot(below, number) * (1 - share) + F.one_hot(below + 1, number) * share
    return -(two_hot * F.log_softmax(logits, dim=-1)).sum(-1).mean()


def _kl(p: Tensor, q: Tensor) -> Tensor:
    first, second = (torch.distributions.OneHotCategorical(logits=x) for x in (p, q))
    divergence = torch.distributions.kl.kl_divergence(first, second)
    return divergence.sum(-1).mean().clamp_min(1.0)


def _lambda_returns(reward: Tensor, value: Tensor, end: Tensor) -> Tensor:
    gamma, lambda_ = 0.985, 0.95
    result = torch.zeros_like(value)
    result[:, -1] = value[:, -1]
    for t in reversed(range(reward.shape[1])):
        discount = gamma * (1 - end[:, t])
        mixed = (1 - lambda_) * value[:, t] + lambda_ * result[:, t + 1]
        result[:, t] = reward[:, t] + discount * mixed
    return result[:, :-1]


class AgentStep:
    """The three parts of an agent step, on noise."""

    def __init__(self, sizes: Sizes) -> None:
        torch.manual_seed(0)
        self.sizes, self.model = sizes, _WorldModel(sizes)
        agent = (sizes.latent + sizes.width, sizes.agent_width, sizes.agent_depth)
        self.actor, self.critic = _mlp(*agent, sizes.num_actions), _mlp(*agent, sizes.num_bins)
        self.slow_critic = copy.deepcopy(self.critic)
        self.model_adam = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.trained = [*self.actor.parameters(), *self.critic.parameters()]
        self.agent_adam = torch.optim.Adam(self.trained, lr=3e-5, eps=1e-5)
        height, width, channels = sizes.image

        def records(*shape: int) -> tuple[Tensor, Tensor]:
            frames = torch.randint(0, 256, (*shape, channels, height, width), dtype=torch.uint8)
            return frames, torch.randint(0, sizes.num_actions, shape)

        self.batch = records(sizes.batch_size, sizes.batch_length)
        self.contexts = records(sizes.dreams, sizes.context)
        self.dreamed = self.dreams()

    def parameters(self) -> dict[str, int]:
        """How many each part trains."""
        modules = {"world_model": self.model, "actor": self.actor, "critic": self.critic}
        return {
            name: sum(parameter.numel() for parameter in module.parameters())
            for name, module in modules.items()
        }

    def world_model(self) -> None:
        """One update of the world model."""
        model, (frames, action) = self.model.train(), self.batch
        frames = frames.float() / 255
        posterior = model.encode(frames)
        latent = _sample(posterior)
        decoded = model.decoder(latent.flatten(0, 1)).unflatten(0, action.shape)
        h = model.sequence(latent, action)
        prior = model.log_probs(model.prior(h))
        zeros = torch.zeros(action.shape)
        loss = (
            ((decoded - frames) ** 2).sum((2, 3, 4)).mean()
            + _two_hot_loss(model.reward(h), zeros)
            + F.binary_cross_entropy_with_logits(model.end(h).squeeze(-1), zeros)
            + 0.5 * _kl(posterior[:, 1:].detach(), prior[:, :-1])
            + 0.1 * _kl(posterior[:, 1:], prior[:, :-1].detach())
        )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
        self.model_adam.step()
        self.model_adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def dreams(self) -> tuple[Tensor, ...]:
        """All dreams: features ``(N, L+1, F)``, actions, rewards and ends ``(N, L)``."""
        model, (frames, context) = self.model.eval(), self.contexts
        cache = [torch.zeros(len(frames), 0, self.sizes.width) for _ in model.blocks]
        seen = _sample(model.encode(frames.float() / 255))
        for i in range(self.sizes.context):
            latent, h, _, _ = model.token(seen[:, i : i + 1], context[:, i : i + 1], cache)
        features, steps = [torch.cat([latent, h], dim=-1)], []
        for _ in range(self.sizes.horizon):
            logits = self.actor(features[-1])
            action = torch.distributions.Categorical(logits=logits).sample()
            latent, h, reward, end = model.token(latent, action, cache)
            features.append(torch.cat([latent, h], dim=-1))
            steps.append((action, reward, end.float()))
        return (
            torch.cat(features, dim=1),
            *(torch.cat(x, dim=1) for x in zip(*steps, strict=True)),
        )

    def actor_critic(self) -> None:
        """One update of actor and critic from the same dreams."""
        features, action, reward, end = self.dreamed
        policy = torch.distributions.Categorical(logits=self.actor(features)[:, :-1])
        logits = self.critic(features)
        with torch.no_grad():
            slow_target = _lambda_returns(reward, _value(self.slow_critic(features)), end)
        value = _value(logits)
        target = _lambda_returns(reward, value, end)
        low, high = (
            torch.kthvalue(target.flatten(), max(1, int(share * target.numel()))).values
            for share in (0.05, 0.95)
        )
        advantage = (target - value[:, :-1]) / torch.clamp_min(high - low, 1.0)
        loss = (
            _two_hot_loss(logits[:, :-1], target.detach())
            + _two_hot_loss(logits[:, :-1], slow_target)
            - (policy.log_prob(action) * advantage.detach()).mean()
            - 3e-4 * policy.entropy().mean()
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 100.0)
        self.agent_adam.step()
        self.agent_adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            pairs = zip(self.slow_critic.parameters(), self.critic.parameters(), strict=True)
            for slow, parameter in pairs:
                slow.mul_(0.98).add_(0.02 * parameter)


def main(argv: Sequence[str]) -> None:
    """Announce the sizes, then time a part for every line of input."""
    sizes = json.loads(argv[1])
    step = AgentStep(Sizes(**{**sizes, "channels": tuple(sizes["channels"])}))
    parts = {
        "world-model update": step.world_model,
        "dreams": step.dreams,
        "actor-critic update": step.actor_critic,
    }
    about = {"version": torch.__version__, "parameters": step.parameters()}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        parts[line.strip()]()
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    main(sys.argv)
