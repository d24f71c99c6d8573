"""What an option takes: its type and bounds, in a check and in words."""

from __future__ import annotations

import dataclasses
import math
import typing
from types import NoneType

from lab.bench.errors import UserError

NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
LARGEST = 10**9  # of whole numbers with no bound of their own; what is above is a slip of the hand


class Takes:
    """What an option takes: converts and checks a value, and says what it takes."""

    def __init__(
        self, hint: object, least=None, above=None, most=None, choices=(), empty=False
    ) -> None:
        self.many = typing.get_origin(hint) is tuple  # tuple[str, ...]: one or more words
        kinds = typing.get_args(hint) or (hint,)
        self.optional = NoneType in kinds
        self.kind = next(kind for kind in kinds if kind not in (NoneType, ...))
        self.least, self.above, self.most, self.choices = least, above, most, choices
        self.empty = empty  # whether no word at all will do

    @classmethod
    def of(cls, options: type) -> dict[str, Takes]:
        """What each option of an options class takes, by name."""
        hints, fields = typing.get_type_hints(options), dataclasses.fields(options)
        return {
            f.name: cls(hints[f.name], empty=f.default == (), **f.metadata["takes"]) for f in fields
        }

    def __call__(self, name: str, value: object) -> object:
        """The value of the option `name` in its type; raises UserError."""
        words = value if isinstance(value, list | tuple) else [value]
        converted, got, limit = [], "nothing", ""
        try:
            for word in words:
                got = f"a {type(word).__name__}"  # of a file, which may be nested without end
                if word is not None and not isinstance(word, str | int | float):
                    raise ValueError
                got = repr(word)[:60]
                converted.append(self._converted(word))
            if not (words or self.empty) or (len(words) > 1 and not self.many):
                several = f"{len(words)} words, {' '.join(map(str, words))}"
                got = several[:60] if words else "nothing"
                raise ValueError
        except OverflowError:
            limit = f" and of at most {LARGEST:,}" * (self.kind is int)
        except (TypeError, ValueError):
            pass
        else:
            return tuple(converted) if self.many else converted[0]
        raise UserError(f"--{name} takes {self}{limit}, got {got}")

    def _converted(self, value: object) -> object:
        if self.optional and (value is None or value in ("none", "null")):
            return None
        # YAML reads 1e-3 as a string and 3 as a whole number; a flag's value is always a string.
        half = self.kind is int and isinstance(value, float) and not value.is_integer()
        if value is None or half or isinstance(value, bool) != (self.kind is bool):
            raise ValueError
        number = self.kind(value)
        if self.kind is int and self.most is None and number > LARGEST:
            raise OverflowError
        if (
            (self.kind is float and not math.isfinite(number))
            # An unset shell variable, a line break, a byte that is no letter.
            or (self.kind is str and not (number and number.isprintable()))
            or (self.choices and number not in self.choices)
            or (self.least is not None and number < self.least)
            or (self.above is not None and number <= self.above)
            or (self.most is not None and number > self.most)
        ):
            raise ValueError
        return number

    def __str__(self) -> str:
        bounds = {"of at least": self.least, "above": self.above, "of at most": self.most}
        form = ",d" if self.kind is int else "g"
        limits = " and ".join(f"{word} {b:{form}}" for word, b in bounds.items() if b is not None)
        text = f"{NOUNS[self.kind]} {limits}".strip()
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        return f"{text}, or none" if self.optional else text
