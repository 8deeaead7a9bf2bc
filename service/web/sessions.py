"""Signing in: the one password, how often it may be tried, and the signed cookie of those who knew it.

The key that signs a cookie lives as long as the process: after a restart, as for a new password, people sign in again.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from http import HTTPStatus

from itsdangerous import BadSignature, TimestampSigner
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

SESSION_S = 7 * 86_400
_ADDRESSES_MAX = 1000


class Sessions:
    """Checks `password`, and gives and reads the cookie of that name."""

    def __init__(self, password: str, cookie: str) -> None:
        self._digest = _digest(password)
        self._attempts = Attempts()
        self._cookie = cookie
        self._signer = TimestampSigner(secrets.token_bytes(32), salt="session", digest_method=hashlib.sha256)

    def check_password(self, request: Request, given: str) -> None:
        """Raise HTTPException if `given` is not the password, or if the caller's address tried too often."""
        address, now = request.client.host if request.client else "", time.monotonic()
        if wait_s := self._attempts.wait_s(address, now):
            raise HTTPException(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"password: tried too often; try again in {wait_s:.0f} s",
                {"retry-after": f"{wait_s:.0f}"},
            )
        # Compared in constant time.
        if not hmac.compare_digest(_digest(given), self._digest):
            self._attempts.failed(address, now)
            raise HTTPException(HTTPStatus.UNAUTHORIZED, "password: wrong")

    def is_signed_in(self, request: Request) -> bool:
        """Return whether the request has a valid cookie of ours that has not expired."""
        try:
            self._signer.unsign(request.cookies.get(self._cookie, ""), max_age=SESSION_S)
        except BadSignature:
            return False
        return True

    def begin(self, request: Request, response: Response) -> None:
        set_cookie(request, response, self._cookie, self._signer.sign(secrets.token_hex(16)).decode())

    def end(self, request: Request, response: Response) -> None:
        set_cookie(request, response, self._cookie, "", age_s=0)


def set_cookie(request: Request, response: Response, name: str, value: str, age_s: int | None = None) -> None:
    """Add a cookie to `response` that scripts cannot read and other sites do not send."""
    # Behind a proxy that speaks TLS; a caller who says so without one only loses their own cookie.
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    response.set_cookie(name, value, age_s, secure=secure, httponly=True, samesite="strict")


class Attempts:
    """Failed attempts, of each address and of all: `each_max` and `all_max` at once, one more every `each_s`, `all_s`.

    Behind a proxy all come from one address, so a person who knows the password waits while another guesses.
    """

    def __init__(self, each_max: int = 10, each_s: float = 6.0, all_max: int = 60, all_s: float = 1.0) -> None:
        self._each = (each_max, each_s)
        self._all = (all_max, all_s)
        self._of_all = (0.0, 0.0)
        # Of each address: failures that still counted, and when; the count drains with time.
        self._of: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str, now: float) -> float:
        """Return the seconds until `address` may try again, at `now`, monotonic s; 0 is now."""
        of_each = _wait(self._of.get(address, (0.0, now)), self._each, now)
        return max(of_each, _wait(self._of_all, self._all, now))

    def failed(self, address: str, now: float) -> None:
        """Count a failure of `address` at `now`, monotonic s."""
        self._of[address] = (_left(self._of.get(address, (0.0, now)), self._each, now) + 1, now)
        self._of.move_to_end(address)
        while len(self._of) > _ADDRESSES_MAX:
            self._of.popitem(last=False)
        self._of_all = (_left(self._of_all, self._all, now) + 1, now)


def _left(counted: tuple[float, float], limit: tuple[int, float], now: float) -> float:
    failures, at = counted
    return max(0.0, failures - (now - at) / limit[1])


def _wait(counted: tuple[float, float], limit: tuple[int, float], now: float) -> float:
    over = _left(counted, limit, now) - (limit[0] - 1)
    return max(0.0, over * limit[1])


def _digest(password: str) -> bytes:
    return hashlib.sha256(password.encode("utf-8", "surrogatepass")).digest()
