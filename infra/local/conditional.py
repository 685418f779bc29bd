"""Add conditional writes (`If-Match`, `If-None-Match`) to Swift's S3 interface.

Swift's S3 interface refuses `If-Match` on a PUT, and lets several simultaneous writers with
`If-None-Match: *` through. The store's leases rely on both. A single proxy serves this cluster, so
one lock per object in the proxy is enough.
"""

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakValueDictionary

from eventlet.semaphore import Semaphore
from swift.common.middleware.s3api import s3request
from swift.common.swob import HTTPPreconditionFailed
from swift.common.wsgi import make_subrequest

_refuse_conditions = s3request.S3Request._validate_headers


def _validate_headers(self: s3request.S3Request) -> None:
    """Check a request's headers as Swift does, but accept `If-Match`."""
    condition = self.environ.pop("HTTP_IF_MATCH", None)
    try:
        _refuse_conditions(self)
    finally:
        if condition is not None:
            self.environ["HTTP_IF_MATCH"] = condition


s3request.S3Request._validate_headers = _validate_headers


class Conditional:
    """WSGI filter behind authentication, where paths are Swift's."""

    def __init__(self, app: Callable[..., Iterable[bytes]]):
        """Wrap the rest of the pipeline."""
        self._app = app
        self._locks: WeakValueDictionary[str, Semaphore] = WeakValueDictionary()

    def __call__(self, env: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Pass a request on if its condition holds; other writers of the object wait meanwhile."""
        wanted, unwanted = env.get("HTTP_IF_MATCH"), env.get("HTTP_IF_NONE_MATCH")
        if env["REQUEST_METHOD"] != "PUT" or not (wanted or unwanted):
            return self._app(env, start_response)
        lock = self._locks.setdefault(env["PATH_INFO"], Semaphore())
        with lock:
            present = make_subrequest(env, method="HEAD").get_response(self._app)
            if present.is_success:
                etag = present.etag
            elif present.status_int == 404:
                etag = None
            else:
                return present(env, start_response)
            refused = (wanted and wanted.strip('"') != etag) or (unwanted and etag)
            if refused:
                return HTTPPreconditionFailed()(env, start_response)
            env.pop("HTTP_IF_MATCH", None)
            return self._app(env, start_response)


def filter_factory(_: dict[str, str], **__: str) -> Callable[..., Conditional]:
    """Make the filter for PasteDeploy."""
    return Conditional
