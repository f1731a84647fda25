"""One wording for every environment name that does not exist."""

import difflib
from collections.abc import Sequence


def unknown_name_error(kind: str, name: str, known: Sequence[str], how_to_list: str) -> ValueError:
    """Builds the error for a name that is not known, with its nearest neighbours.

    Case is ignored in the comparison, because a wrong case is the commonest mistake.

    Args:
      kind: what the name was meant to name, e.g. ``"environment"``.
      name: the value that the user gave.
      known: the names that exist.
      how_to_list: an expression that returns all of them.

    Returns:
      The exception, for the caller to raise.
    """
    by_folded = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(name.casefold(), list(by_folded), n=3, cutoff=0.5)
    suggestion = f"Did you mean {' or '.join(by_folded[folded] for folded in near)}? " * bool(near)
    return ValueError(f"Unknown {kind} {name!r}. {suggestion}List them all with `{how_to_list}`.")
