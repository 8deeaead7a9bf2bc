"""Sessions of the page: signed cookies, tokens against forged forms, and how often a password may be tried.

Nothing is kept on the server: a cookie says when it was given and whether its bearer knew the password, signed
with a key that lives as long as the process. After a restart people sign in again.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass

SESSION_S = 7 * 86_400
_ADDRESSES_MAX = 1000


@dataclass(frozen=True, slots=True)
class Session:
    """What a cookie says; `token` is what the forms of this session carry."""

    cookie: str
    token: str
    signed_in: bool


class Sessions:
    """Gives and reads cookies; `key` is secret, random bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def new(self, now: float, *, signed_in: bool) -> Session:
        """Return a new session, at `now` in seconds of the epoch."""
        content = f"{'in' if signed_in else 'out'}.{int(now)}.{secrets.token_hex(16)}"
        return self._session(f"{content}.{self._sign('session', content)}", signed_in)

    def read(self, cookie: str, now: float) -> Session | None:
        """Return the session that `cookie` was given for; None where it was not given by us, or is too old."""
        content, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", content).encode()):
            return None
        signed_in, given_at, _ = content.split(".")
        if not 0 <= now - int(given_at) < SESSION_S:
            return None
        return self._session(cookie, signed_in == "in")

    def _session(self, cookie: str, signed_in: bool) -> Session:
        return Session(cookie, self._sign("form", cookie), signed_in)

    def _sign(self, purpose: str, content: str) -> str:
        return hmac.new(self._key, f"{purpose}:{content}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()


class Password:
    """One password, compared in a time that says nothing of it, and not more often than `Attempts` allows."""

    def __init__(self, password: str, attempts: Attempts) -> None:
        self._digest = _digest(password)
        self._attempts = attempts

    def wait_s(self, address: str, now: float) -> float:
        """Return the seconds until somebody at `address` may try again; 0 is now."""
        return self._attempts.wait_s(address, now)

    def fits(self, given: str, address: str, now: float) -> bool:
        """Return whether `given` is the password; one that is not counts as an attempt of `address`."""
        fits = hmac.compare_digest(_digest(given), self._digest)
        if not fits:
            self._attempts.failed(address, now)
        return fits


class Attempts:
    """Failed attempts, of each address and of all: `each_max` and `all_max` at once, one more every `each_s`, `all_s`.

    Behind a proxy all come from one address, so a person who knows the password waits while another guesses.
    """

    def __init__(self, each_max: int = 10, each_s: float = 6.0, all_max: int = 60, all_s: float = 1.0) -> None:
        self._each = (each_max, each_s)
        self._all = (all_max, all_s)
        self._of_all = (0.0, 0.0)
        # How many failures count at what time; the count drains with time.
        self._of: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str, now: float) -> float:
        """Return the seconds until `address` may try again, at `now`, monotonic s."""
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
