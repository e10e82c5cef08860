"""Features of entities that a model is asked about now, and what is given in their place."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ._dataset import table_of
from ._errors import Stale, WrongRequest

if TYPE_CHECKING:
    from ._native import Client as Native

Source = Literal["online", "cache", "default", "caller", "none", "switched_off"]
"""Where a value comes from: the online store; what was read from it some seconds ago; the default in the feature's definition;
the ``defaults`` of the call; nowhere, so that it is ``None``; or what a person had put in its place by ``tidegate feature disable``."""


class Frame(Protocol):
    """A frame of pandas, Polars or Arrow: anything that hands out Arrow streams."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


@dataclass(frozen=True)
class OnlineRow:
    """The features of one entity."""

    view: str
    """The view, with its version."""
    entity: dict[str, Any]
    """The entity's keys as they were asked for."""
    found: bool
    """Whether the entity is there; its features are defaults otherwise."""
    event_timestamp: dt.datetime | None
    """Since when the features are true; ``None`` when the entity was not found."""
    features: dict[str, Any]
    """A value per feature, ``None`` where there is none."""
    sources: dict[str, Source]
    """Per feature where its value comes from."""
    snapshot: str | None
    """The snapshot that is live; ``None`` when nothing is, or the store did not answer."""
    age: dt.timedelta | None
    """How old what is live is, from the end of its interval; only with ``max_staleness``."""

    def __getitem__(self, feature: str) -> Any:
        return self.features[feature]


def read(
    native: Native,
    view: str,
    keys: Iterable[Mapping[str, Any]] | Frame,
    features: Iterable[str] | None,
    max_staleness: dt.timedelta | float | None,
    defaults: Mapping[str, Any] | None,
    timeout: dt.timedelta | float | None,
) -> list[OnlineRow]:
    """The rows of ``keys``, in their order.

    ``defaults`` says that an answer is wanted whatever happens: then a store that does not answer, and features that are too
    old, are no errors. Stored defaults come before the caller's: a model was trained on them.
    """
    limit = seconds(max_staleness)
    entities = _entities(keys)
    asked = [[(plain(name), text(name, value)) for name, value in entity.items()] for entity in entities]
    told = native.online(
        view,
        asked,
        features=None if features is None else _names(features),
        aged=limit is not None,
        anyhow=defaults is not None,
        timeout=seconds(timeout),
    )
    stored = told["defaults"]
    age = None if told["age"] is None else dt.timedelta(seconds=told["age"])
    # Of nobody nothing is read, so nothing can be too old.
    too_old = limit is not None and bool(entities) and (told["age"] is None or told["age"] > limit)
    unreachable = any(row[2] for row in told["entities"])
    if too_old and defaults is None:
        raise _stale(told["view"], age, limit or 0.0)
    rows = []
    for entity, (found, at, _, given) in zip(entities, told["entities"], strict=True):
        values: dict[str, Any] = {}
        sources: dict[str, Source] = {}
        for name, (value, source) in given.items():
            if too_old and source in ("online", "cache"):
                value, source = (stored[name], "default") if name in stored else (None, "none")
            if source == "none" and defaults is not None and name in defaults:
                value, source = defaults[name], "caller"
            values[name] = value
            sources[name] = source  # type: ignore[assignment]
        snapshot = None if unreachable and not found else told["snapshot"]
        rows.append(OnlineRow(told["view"], dict(entity), found, at, values, sources, snapshot, age))
    if defaults is not None and rows:
        unknown = [name for name in defaults if name not in rows[0].features]
        if unknown:
            known = ", ".join(f"`{name}`" for name in rows[0].features)
            raise WrongRequest(f"there is a default for `{unknown[0]}`, which is not asked for", f"asked for is {known}")
    return rows


def _stale(view: str, age: dt.timedelta | None, limit: float) -> Stale:
    allowed = dt.timedelta(seconds=limit)
    if age is None:
        return Stale(f"nothing of `{view}` is live, and at most {allowed} old was asked for", "`tidegate status` says why")
    return Stale(
        f"what is live of `{view}` is {dt.timedelta(seconds=int(age.total_seconds()))} old, and at most {allowed} is allowed",
        "`tidegate status` says why; pass `defaults=` for an answer all the same",
    )


def _entities(given: Iterable[Mapping[str, Any]] | Frame) -> list[Mapping[str, Any]]:
    """One dict of keys per entity, whatever they come as."""
    hint = "give an entity's keys as a dict, as in `{'carrier': 'UA'}`, and those of several as a list of dicts or a frame"
    table = table_of(given, "keys")
    if table is not None:
        rows: list[Mapping[str, Any]] = table.to_pylist()
        return rows
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise WrongRequest(f"{given!r} says of no entity which keys it has", hint)
    entities = list(given)
    for entity in entities:
        if not isinstance(entity, Mapping):
            raise WrongRequest(f"{entity!r} does not say which keys it has", hint)
    return entities


def _names(features: Iterable[str]) -> list[str]:
    if isinstance(features, str):
        raise WrongRequest("`features` is one text", f"give a list, as in `[{features!r}]`")
    return [plain(name) for name in features]


def plain(name: object) -> str:
    """A name as a text; one of an enum is what its member holds, which ``str`` would not say."""
    return str.__str__(name) if isinstance(name, str) else str(name)


def seconds(duration: dt.timedelta | float | None) -> float | None:
    """A duration in seconds, which must not be negative."""
    if duration is None:
        return None
    try:
        found = duration.total_seconds() if isinstance(duration, dt.timedelta) else float(duration)
    except (TypeError, ValueError):
        found = math.nan
    if not found >= 0:
        raise WrongRequest(f"{duration!r} is no length of time", "give seconds or a `datetime.timedelta`")
    return found


def text(name: object, value: Any) -> str:
    """A key's value as the online store writes it."""
    if not isinstance(value, (str, int, dt.date)):
        value = _scalar(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    # A member of an enum has a name of its own, which is what `str` gives. The store knows what it stands for.
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, dt.datetime):
        return instant(value)
    if isinstance(value, dt.date):
        return value.isoformat()
    raise WrongRequest(f"the key `{name}` cannot be {value!r}", "keys are texts, whole numbers, booleans, dates and times")


def _scalar(value: Any) -> Any:
    """What a scalar of numpy, or of something alike, is in Python; anything else as it is."""
    try:
        found = value.item()
    except (AttributeError, TypeError, ValueError):
        return value
    if isinstance(found, int) and type(value).__name__ == "datetime64":
        return value.astype("datetime64[us]").item()  # nanoseconds would be a number
    return found


def instant(at: dt.datetime | dt.date | str) -> str:
    """A time in RFC 3339; one without a zone is one of UTC."""
    if isinstance(at, dt.datetime):
        return (at.replace(tzinfo=dt.timezone.utc) if at.tzinfo is None else at).isoformat()
    if isinstance(at, dt.date):
        return at.isoformat()
    return str(at)
