"""The base of all settings: frozen, bounded, strict about names."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """Settings are immutable; an unknown name and a number that is not finite are errors.

    A table that names some settings of a section leaves the others as the section's owner has them, also
    where the owner's default is not the section's own.

    >>> class Inner(Settings):
    ...     a: int = 1
    ...     b: int = 2
    >>> class Outer(Settings):
    ...     inner: Inner = Inner(a=7)
    >>> Outer.model_validate({"inner": {"b": 3}}).inner
    Inner(a=7, b=3)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _over_the_defaults(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {
            name: _over(fields[name].default, value) if name in fields else value
            for name, value in values.items()
        }


def _over(default: object, value: object) -> object:
    """`value` on top of a default: settings are merged name by name, anything else is replaced."""
    if not isinstance(default, Settings) or not isinstance(value, Mapping):
        return value
    kept = {name: getattr(default, name) for name in type(default).model_fields}
    return kept | {name: _over(kept.get(name), inner) for name, inner in value.items()}
