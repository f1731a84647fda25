"""Who may import whom: the contracts of setup.cfg, and what an import must not drag in."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_are_kept() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


def test_a_world_model_needs_no_suite_and_no_launcher() -> None:
    """It is for everyone's environments, and they may still choose devices and flags."""
    code = (
        "import sys, worldmodels_jax.models.git_storm, worldmodels_jax.agents.imagination\n"
        "from jax._src import xla_bridge\n"
        "print(*sys.modules, f'started={xla_bridge.backends_are_initialized()}')"
    )
    names = set(_run("-c", code).split())
    assert "worldmodels_jax.models.git_storm" in names
    unwanted = {"gymnax", "ale_py", "orbax", "matplotlib", "tensorboardX", "PIL", "tqdm"}
    assert names & unwanted == set()
    assert "started=False" in names


def test_a_launcher_leaves_the_backend_to_be_chosen() -> None:
    """Several hosts are joined before anything is computed."""
    code = (
        "import experiments.train\n"
        "from jax._src import xla_bridge\n"
        "print(f'started={xla_bridge.backends_are_initialized()}')"
    )
    assert "started=False" in _run("-c", code)


def test_the_emulator_is_optional() -> None:
    """ale_py (GPL-2.0) is not imported before an Atari game is made."""
    code = (
        "import sys, worldmodels_jax.training.run, worldmodels_jax.envs.atari, experiments.configs;"
        "print(*sys.modules)"
    )
    assert "ale_py" not in _run("-c", code).split()


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
