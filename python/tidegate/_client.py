"""The door to a project."""

from __future__ import annotations

import datetime as dt
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

from . import _native, _online
from ._dataset import Dataset, spine_of
from ._errors import ForgottenWarning, LateWarning, WrongRequest
from ._online import Frame, OnlineRow

Listed = list[dict[str, Any]]
"""What a list command prints with ``--format json``: its keys are stable."""


class Client:
    """A project, opened: the folder with ``tidegate.yaml``.

    One client serves all threads of a process. It holds what the command would hold: connections to the registry and to the
    online store, and, from the first training set on, threads and memory within the project's ``memory:``. It can be used
    with ``with``, and pickled, which opens another one of the same folder where it is unpickled. Open clients after forking:
    one that was carried over is of no use, and where one was open at the fork no other can be opened.

    ``project``
        The folder; else the variable ``TIDEGATE_PROJECT_DIR``, else the nearest folder upwards.
    ``profile``
        The section of ``profiles:`` in ``tidegate.yaml`` to lay over the settings; else the one that the variable
        ``TIDEGATE_PROFILE`` names.
    ``cache_seconds``
        How long features from the online store are remembered; 0 for not at all. What is remembered is dropped within a
        second after something else went live.
    """

    def __init__(
        self,
        project: str | os.PathLike[str] | None = None,
        profile: str | None = None,
        *,
        cache_seconds: float = 0.0,
    ) -> None:
        folder = project if project is not None else os.environ.get("TIDEGATE_PROJECT_DIR") or None
        self._profile = profile if profile is not None else os.environ.get("TIDEGATE_PROFILE") or None
        self._cache_seconds = _online.seconds(cache_seconds) or 0.0
        self._native = _native.Client(folder, self._profile, self._cache_seconds)

    @property
    def project(self) -> str:
        """The project's name."""
        return self._native.project

    @property
    def root(self) -> Path:
        """The project's folder."""
        return Path(self._native.root)

    def training_set(
        self,
        spine: object,
        features: str | Sequence[str],
        *,
        event_timestamp: str = "event_timestamp",
        at_snapshot: str | None = None,
        known_at: dt.datetime | dt.date | str | None = None,
        names: Literal["full", "short"] = "full",
        name: str | None = None,
    ) -> Dataset:
        """Joins features to labels, each as it was known at the label's instant; the rows come out in the labels' order.

        ``spine``
            The labels: a frame of pandas, Polars or Arrow (anything with ``__arrow_c_stream__``), a dict of columns, the
            path or URL of a Parquet or CSV file or a Delta table, or ``Sql`` over the project's sources. It has the keys of
            the views' entities, under their names, and an instant.
        ``features``
            ``view.feature``, ``view@v2.feature``, a view for all of its features, patterns with ``*``, feature services.
        ``event_timestamp``
            The column with the instant: a timestamp, a date (midnight in UTC) or a text. Without a zone it is one of UTC.
        ``at_snapshot``
            Reads views as they were when this snapshot had just been recorded.
        ``known_at``
            Lets only what had been published by then count.
        ``names``
            ``full`` names columns ``view__feature``, ``short`` just ``feature``.
        ``name``
            Lets the registry remember the set under this name, with its manifest: ``datasets()`` lists it, a restore says
            when it holds what is taken back, and ``tidegate dataset pin`` keeps what it was made of. A registry that cannot
            be written is an error before anything is computed, and a ``ForgottenWarning`` afterwards.
        """
        kind, given = spine_of(spine)
        return self._dataset(kind, given, features, event_timestamp, at_snapshot, known_at, names, name)

    def scoring_set(
        self,
        features: str | Sequence[str],
        at: dt.datetime | dt.date | str,
        *,
        at_snapshot: str | None = None,
        known_at: dt.datetime | dt.date | str | None = None,
        names: Literal["full", "short"] = "full",
        name: str | None = None,
    ) -> Dataset:
        """The features of every entity that the views know at an instant, in the order of its keys."""
        return self._dataset(
            "entities", _online.instant(at), features, "event_timestamp", at_snapshot, known_at, names, name
        )

    def _dataset(
        self,
        kind: str,
        spine: object,
        features: str | Sequence[str],
        event_timestamp: str,
        at_snapshot: str | None,
        known_at: dt.datetime | dt.date | str | None,
        names: str,
        name: str | None,
    ) -> Dataset:
        if names not in ("full", "short"):
            raise WrongRequest(f"`names` cannot be {names!r}", "it is `full` or `short`")
        reader, manifest, late, forgotten = self._native.dataset(
            kind,
            spine,
            features=[_online.plain(name) for name in ([features] if isinstance(features, str) else features)],
            event_timestamp=event_timestamp,
            at_snapshot=at_snapshot,
            known_at=None if known_at is None else _online.instant(known_at),
            short_names=names == "short",
            name=name,
        )
        for told in late:
            warnings.warn(told, LateWarning, stacklevel=3)
        if forgotten is not None:
            warnings.warn(forgotten, ForgottenWarning, stacklevel=3)
        return Dataset(reader.read_all(), json.loads(manifest))

    @overload
    def online(
        self,
        view: str,
        keys: Mapping[str, Any],
        features: Iterable[str] | None = None,
        *,
        max_staleness: dt.timedelta | float | None = None,
        defaults: Mapping[str, Any] | None = None,
        timeout: dt.timedelta | float | None = 5.0,
    ) -> OnlineRow: ...

    @overload
    def online(
        self,
        view: str,
        keys: Iterable[Mapping[str, Any]] | Frame,
        features: Iterable[str] | None = None,
        *,
        max_staleness: dt.timedelta | float | None = None,
        defaults: Mapping[str, Any] | None = None,
        timeout: dt.timedelta | float | None = 5.0,
    ) -> list[OnlineRow]: ...

    def online(
        self,
        view: str,
        keys: Mapping[str, Any] | Iterable[Mapping[str, Any]] | Frame,
        features: Iterable[str] | None = None,
        *,
        max_staleness: dt.timedelta | float | None = None,
        defaults: Mapping[str, Any] | None = None,
        timeout: dt.timedelta | float | None = 5.0,
    ) -> OnlineRow | list[OnlineRow]:
        """Features that are live now, of one entity (a dict) or several (a list of dicts, or a frame), read at one moment.

        A feature that an entity lacks has the default of its definition, else that of ``defaults``, else ``None``. Without
        ``defaults`` a store that does not answer is ``Unavailable``; with them, be they empty, there is always an answer,
        from what is remembered and from defaults, and ``sources`` says which.

        ``max_staleness`` (seconds, or a ``timedelta``) is how old what is live may be, counted from the end of its interval.
        Older features are ``Stale``, or replaced by defaults when ``defaults`` are given.

        ``timeout`` (the same) is how long the answer may take in all, and ``None`` as long as it takes. When the online store
        needs longer it is ``Unavailable``.
        """
        if isinstance(keys, Mapping):
            return _online.read(self._native, view, [keys], features, max_staleness, defaults, timeout)[0]
        return _online.read(self._native, view, keys, features, max_staleness, defaults, timeout)

    def views(self, *, search: str | None = None, owner: str | None = None, tag: str | None = None) -> Listed:
        """The feature views."""
        return _listed(self._native.views(search, owner, tag))

    def features(self, *, search: str | None = None, owner: str | None = None, tag: str | None = None) -> Listed:
        """The features of all views, one by one."""
        return _listed(self._native.features(search, owner, tag))

    def services(self, *, search: str | None = None, owner: str | None = None, tag: str | None = None) -> Listed:
        """The feature services."""
        return _listed(self._native.services(search, owner, tag))

    def consumers(
        self,
        *,
        view: str | None = None,
        search: str | None = None,
        owner: str | None = None,
        tag: str | None = None,
    ) -> Listed:
        """Who reads features; with ``view``, only who reads some of that view."""
        return _listed(self._native.consumers(search, owner, tag, view))

    def snapshots(self, *, dag: str | None = None, view: str | None = None, limit: int = 20) -> Listed:
        """What runs left behind, the newest first; at most ``limit``, 0 for all."""
        return _listed(self._native.snapshots(dag, view, limit))

    def datasets(self, *, view: str | None = None, built_from: str | None = None, limit: int = 20) -> Listed:
        """The datasets that the registry remembers, the newest first; at most ``limit``, 0 for all."""
        return _listed(self._native.datasets(view, built_from, limit))

    def close(self) -> None:
        """Lets go of threads, connections and files, once calls under way in other threads have ended.

        Calls that come afterwards are refused. In a process that was forked there is nothing to let go of.
        """
        self._native.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # By where it is: another process may have another current folder, and other variables.
        return (_open, (str(self.root), self._profile, self._cache_seconds))

    def __repr__(self) -> str:
        return f"<tidegate.Client of `{self.project}` in {self.root}>"


def _listed(text: str) -> Listed:
    found: Listed = json.loads(text)
    return found


def _open(folder: str | os.PathLike[str] | None, profile: str | None, cache_seconds: float) -> Client:
    return Client(folder, profile, cache_seconds=cache_seconds)
