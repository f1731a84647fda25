"""The longest episode, where an environment's suite does not say it."""

NO_TIME_LIMIT = 2**31 - 1  # what `EnvSpec.max_episode_steps` says of episodes of any length


def check_time_limit(max_episode_steps: int | None) -> None:
    """Refuses a time limit that leaves no step.

    Args:
      max_episode_steps: the caller's limit in agent steps; None for none.

    Raises:
      ValueError: if it is below 1.
    """
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps={max_episode_steps} leaves no step; give at least 1.")
