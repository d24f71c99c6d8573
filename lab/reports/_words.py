"""What the words of a report say of the runs that it takes: `steps=8000 seed=1`."""

from __future__ import annotations

from typing import Any

from lab.bench.errors import UserError
from lab.bench.options import Takes
from lab.reports import Request


def options_in(request: Request, options: Any) -> dict[str, Any]:
    """Option -> value, for runs in which other options than the free ones have no default.

    Args:
        request: what `report.py` was asked for; its words are `option=value` each.
        options: the options class of the script whose runs the report takes.

    Raises:
        UserError: if a word is no option of the script, or the option does not take the value.
    """
    takes, found, names = Takes.of(options), {}, options().identity()
    for word in request.words:
        name, equals, value = word.partition("=")
        if not equals or name not in names:
            raise UserError(
                f"the words of this report are options of runs, such as steps=8000, got {word!r}"
            )
        flag = {"true": True, "false": False}.get(value, value)  # as YAML reads them
        found[name] = takes[name](name, flag if takes[name].kind is bool else value)
    return found
