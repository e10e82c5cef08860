"""Tidegate from Python: a project opened inside of this process, with no server.

>>> client = tidegate.Client("flights")
>>> training = client.training_set(labels, ["carrier_delays", "carrier_trend.getting_worse"])
>>> training.to_pandas()
>>> client.online("carrier_delays", {"carrier": "UA"}).features
"""

from ._client import Client
from ._dataset import Dataset, Sql
from ._errors import Failed, ForgottenWarning, LateWarning, NotFound, Stale, TidegateError, Unavailable, WrongRequest
from ._native import __version__
from ._online import OnlineRow, Source

for _public in (
    Client,
    Dataset,
    Failed,
    ForgottenWarning,
    LateWarning,
    NotFound,
    OnlineRow,
    Sql,
    Stale,
    TidegateError,
    Unavailable,
    WrongRequest,
):
    _public.__module__ = __name__  # as users know them, in messages and in documentation

__all__ = [
    "Client",
    "Dataset",
    "Failed",
    "ForgottenWarning",
    "LateWarning",
    "NotFound",
    "OnlineRow",
    "Source",
    "Sql",
    "Stale",
    "TidegateError",
    "Unavailable",
    "WrongRequest",
    "__version__",
]
