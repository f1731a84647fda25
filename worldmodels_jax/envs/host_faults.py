"""What is told about workers that were lost and environments that raised an exception."""

import dataclasses

from worldmodels_jax.envs.host_worker import EnvFaultError

# A constructor's way to say that the user gave it something wrong: these pass through as they are.
_USER_ERRORS = {kind.__name__: kind for kind in (ModuleNotFoundError, ImportError, ValueError)}


@dataclasses.dataclass(frozen=True)
class Loss:
    """A worker process that died or hung, and was replaced.

    Attributes:
      name: of its environments.
      environments: their indices in the vector.
      seed: of the vector.
      reason: what happened.
      restarts: how often these environments were started again, this time included.
    """

    name: str
    environments: tuple[int, ...]
    seed: int
    reason: str
    restarts: int

    def __str__(self) -> str:
        return (
            f"The worker of {self.name}, environments {list(self.environments)} (seed "
            f"{self.seed}), {self.reason}. Restart {self.restarts}: they go on from a first "
            "observation, with fresh seeds."
        )


def lost_for_good_error(loss: Loss, times: int) -> RuntimeError:
    """Builds the error for a worker that is lost again and again.

    Args:
      loss: the last one.
      times: how often it was lost without a good step between.

    Returns:
      The exception, for the caller to raise.
    """
    return RuntimeError(
        f"The worker of {loss.name}, environments {list(loss.environments)} (seed {loss.seed}), "
        f"was lost {times} times without a good step between; the last time it {loss.reason}. Run "
        "these environments with workers=0 to see why, or give them a longer timeout or more "
        "memory."
    )


def environment_error(fault: EnvFaultError, name: str, seed: int) -> Exception:
    """Builds the error for an exception in an environment's own code.

    Args:
      fault: what the environment raised, where and when.
      name: of the environment.
      seed: of the vector.

    Returns:
      The exception, for the caller to raise: a ``RuntimeError``, but what a constructor raises to
      tell the user of a missing package or a wrong value keeps its type and message.
    """
    if fault.environment is None:
        return ValueError(
            f"{name} cannot be loaded in a worker process ({fault.message}); define it in a module "
            "that can be imported, not in the main program, or choose workers=0."
        )
    where = f"environment {fault.environment} of {name} (seed {seed})"
    known = next((kind for kind in fault.kinds if kind in _USER_ERRORS), None)
    if fault.during == "make" and known:
        error = _USER_ERRORS[known](fault.message)
        error.add_note(f"raised while making {where}")
        return error
    return RuntimeError(
        f"{fault.kinds[0]} in {fault.during} of {where}: {fault.message}. Its traceback is above. "
        "The vector was closed: mend the environment and make a new one."
    )
