"""A run compiles in its first chunk, with the checkpoint after it, and never again."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from test_host_loop import Walk

from worldmodels_jax.config import apply_overrides
from worldmodels_jax.training.config import Config
from worldmodels_jax.training.env_config import AtariConfig
from worldmodels_jax.training.run import train

CHUNKS = 5


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """What is traced, lowered or compiled, in order, be it found in a cache on disk or not."""
    log: list[str] = []

    def listen(event: str, seconds: float, **about: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            log.append(f"{event.rpartition('/')[-1]} of {about.get('fun_name')}")

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield log
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def five_chunks(config: Config) -> Config:
    """A checkpoint after each, and updates in all but the first."""
    return apply_overrides(config, {"training.steps": "200", "training.checkpoint_every": "40"})


def compiled_by_chunk(
    config: Config, directory: Path, compiled: list[str], **options: Any
) -> list[list[str]]:
    """What is compiled until the end of the first chunk, and in each chunk after it."""
    marks = [0]

    def report(step: int, metrics: Any) -> None:
        if step > config.training.warmup:
            assert metrics["world_model/updates"] > 0
            assert metrics["agent/updates"] > 0
        marks.append(len(compiled))

    train(config, directory, report=report, **options)
    return [compiled[a:b] for a, b in itertools.pairwise(marks)]


def assert_only_the_first_compiles(chunks: list[list[str]], *programs: str) -> None:
    assert len(chunks) == CHUNKS
    for name in programs:
        assert f"backend_compile_duration of jit({name})" in chunks[0]
    assert chunks[1:] == [[]] * (CHUNKS - 1)


def test_another_shape_and_a_weak_type_are_seen(compiled: list[str]) -> None:
    double = jax.jit(lambda x: 2 * x)
    strong, weak, longer = jnp.float32(1), jnp.asarray(1.0), jnp.ones(3, jnp.float32)
    assert strong.dtype == weak.dtype
    for x in (strong, weak, longer):
        compiled.clear()
        double(x)
        assert sum(line.startswith("backend_compile") for line in compiled) == 1
        compiled.clear()
        double(x)
        assert compiled == []


def test_the_compiled_loop(five_chunks: Config, compiled: list[str], tmp_path: Path) -> None:
    chunks = compiled_by_chunk(five_chunks, tmp_path / "run", compiled)
    assert_only_the_first_compiles(chunks, "run")


def test_the_compiled_loop_over_devices(
    five_chunks: Config, compiled: list[str], tmp_path: Path
) -> None:
    """What a chunk returns is laid out over the devices as the first state was."""
    config = apply_overrides(five_chunks, {"model.prior": "mlp"})
    chunks = compiled_by_chunk(config, tmp_path / "run", compiled, num_devices=2)
    assert_only_the_first_compiles(chunks, "run")


def test_the_host_stepped_loop(
    five_chunks: Config, compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Walk, "opened", [], raising=False)
    config = dataclasses.replace(five_chunks, env=AtariConfig(game="Walk", num_envs=2))
    config = apply_overrides(config, {"model.prior": "mlp"})
    chunks = compiled_by_chunk(
        config,
        tmp_path / "run",
        compiled,
        env=lambda num_envs, seed, evaluation: Walk(num_envs, seed),
    )
    assert_only_the_first_compiles(chunks, "decide", "learn")
