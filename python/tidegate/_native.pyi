"""The native half: used by ``tidegate._client`` alone."""

import datetime as dt
import os
from typing import Any, TypedDict

import pyarrow as pa

__version__: str

class _Told(TypedDict):
    view: str
    snapshot: str | None
    age: float | None
    defaults: dict[str, Any]
    entities: list[tuple[bool, dt.datetime | None, bool, dict[str, tuple[Any, str]]]]

class Client:
    def __new__(cls, project: str | os.PathLike[str] | None, profile: str | None, cache_seconds: float) -> Client: ...
    @property
    def project(self) -> str: ...
    @property
    def root(self) -> os.PathLike[str]: ...
    def close(self) -> None: ...
    def views(self, search: str | None, owner: str | None, tag: str | None) -> str: ...
    def features(self, search: str | None, owner: str | None, tag: str | None) -> str: ...
    def services(self, search: str | None, owner: str | None, tag: str | None) -> str: ...
    def consumers(self, search: str | None, owner: str | None, tag: str | None, view: str | None) -> str: ...
    def snapshots(self, dag: str | None, view: str | None, limit: int) -> str: ...
    def datasets(self, view: str | None, built_from: str | None, limit: int) -> str: ...
    def dataset(
        self,
        kind: str,
        spine: object,
        *,
        features: list[str],
        event_timestamp: str,
        at_snapshot: str | None,
        known_at: str | None,
        short_names: bool,
        name: str | None,
    ) -> tuple[pa.RecordBatchReader, str, list[str], str | None]: ...
    def online(
        self,
        view: str,
        keys: list[list[tuple[str, str]]],
        *,
        features: list[str] | None,
        aged: bool,
        anyhow: bool,
        timeout: float | None,
    ) -> _Told: ...
