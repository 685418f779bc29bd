"""A checked connection to the cluster's Prefect server."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from expandr_core.errors import DataError


@contextmanager
def connected() -> Iterator[SyncPrefectClient]:
    """Connect to the server that PREFECT_API_URL names.

    Raises:
        DataError: if it names none (Prefect would start a private one), or the server does not answer
            or refuses us, at first or later.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise DataError(
            "PREFECT_API_URL is not set, so Prefect would start a private server; set it to the "
            "cluster's, such as http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True) as client:
        _check(client, url)
        try:
            yield client
        except httpx.HTTPError as error:
            if not asked_of(url, error):
                raise
            message = error or type(error).__name__
            raise DataError(f"the Prefect server at {url} failed meanwhile: {message}") from error


def asked_of(url: str, error: httpx.HTTPError) -> bool:
    """Tell whether an error is about a request to this address, not to a model's server."""
    try:
        return str(error.request.url).startswith(url)
    except RuntimeError:  # no request
        return False


def _check(client: SyncPrefectClient, url: str) -> None:
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            client.request("GET", "/admin/version")
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            remedy = "set PREFECT_API_AUTH_STRING to the server's user:password"
        elif status in (502, 503, 504):
            remedy = (
                "the proxy in front answers, the Prefect API behind it does not: is it running?"
            )
        else:
            remedy = "is that the address of a Prefect API? It usually ends with /api"
        raise DataError(f"PREFECT_API_URL={url} answers with status {status}; {remedy}") from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise DataError(
            f"no Prefect server answers at PREFECT_API_URL={url} ({error}); is it running, and the "
            "address right?"
        ) from error
