"""Names: what a dropped file is called on its way, what of a foreign name is safe, and what a product may be called.

Owns the ULID in the name, which ties a file to its row. Pure, except for `new_id`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath, PurePosixPath
from urllib.parse import unquote

from ulid import ULID

from service.errors import UsageError
from service.root import DEFAULT_PRODUCT

ALL_PRODUCTS = "all"
"""What `tamis train --product` takes for every product at once; no product may have that name."""

NAME_BYTES_MAX = 200
PRODUCT_BYTES_MAX = 100
_SUFFIX_BYTES_MAX = 16
_ULID = r"[0-9A-HJKMNP-TV-Z]{26}"
_PLAIN_BYTES_MAX = 60
_CLAIMED = re.compile(rf"({_ULID})--([0-9]{{1,3}})--(.+)", re.DOTALL)
_DELIVERED = re.compile(rf"(.+)\.({_ULID})", re.DOTALL)
# Control characters and bytes that are not UTF-8 (surrogates), and what Windows clients of a share cannot show.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff<>:"/\\|?*]')

# What every file system takes, and what Windows keeps for devices, whatever follows after a dot.
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._%-]")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9]|conin|conout)(?![A-Za-z0-9_-])", re.IGNORECASE)
_PLAIN_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


@dataclass(frozen=True, slots=True)
class ClaimedName:
    """What the name of a file in `processing/` says."""

    id: str
    attempt: int
    name: str

    def __str__(self) -> str:
        return f"{self.id}--{self.attempt}--{self.name}"


def new_id() -> str:
    """Return a new ULID: 26 characters, ordered by time, unique whatever the clock says."""
    return str(ULID())


def time_of(id: str) -> datetime | None:
    """Return when the ULID `id` was made; None where it is none."""
    try:
        return ULID.from_str(id).datetime
    except ValueError:
        return None


def parse_claimed_name(name: str) -> ClaimedName | None:
    """Return what `name` says, or None where no claim gives such a name."""
    match = _CLAIMED.fullmatch(name)
    return ClaimedName(match[1], int(match[2]), match[3]) if match else None


def delivered_name(name: str) -> ClaimedName | None:
    """Return what the name of a delivered file says, as a first claim; None where no delivery gives such a name."""
    stem, suffix = split_suffix(name)
    match = _DELIVERED.fullmatch(stem)
    return ClaimedName(match[2], 1, f"{match[1]}{suffix}") if match else None


def safe_name(name: str, bytes_max: int = NAME_BYTES_MAX) -> str:
    """Return `name` with unsafe characters as `%XX` of their bytes, cut to `bytes_max` bytes with its suffix kept."""
    escaped = _UNSAFE.sub(lambda match: _percent(match[0]), name)
    if escaped[:1] in ("-", ".", "~"):
        escaped = _percent(escaped[0]) + escaped[1:]
    if escaped[-1:] in (" ", "."):
        escaped = escaped[:-1] + _percent(escaped[-1])
    stem, suffix = split_suffix(escaped)
    cut = stem.encode()[: bytes_max - len(suffix.encode())].decode("utf-8", "ignore") + suffix
    # What was cut may end as no name should; made safe once more it is to be the same.
    return cut if len(cut) == len(escaped) else cut.rstrip(" .")


def shown_name(name: str | PurePath) -> str:
    """Return `name` as text that can be stored and sent: bytes that are not UTF-8 become `\\xNN`."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Return `text` from outside as `shown_name` does, without control characters or what turns the text around."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown_name(text))


def product_of(folder: str) -> str:
    """Return the product of files in `folder`, relative to `incoming/`: its first part made safe, or `default`."""
    first = folder.partition("/")[0]
    return safe_name(composed(first), PRODUCT_BYTES_MAX) if first else DEFAULT_PRODUCT


def composed(name: str) -> str:
    """Return `name` in the normal form NFC, in which products are compared: macOS sends names decomposed (NFD)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def meant(product: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `product` may stand for: they differ in case, spaces or form of letters alone."""
    alike = _essence(product)
    return next((one for one in sorted(known) if composed(one) != product and _essence(one) == alike), None)


def _essence(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in plain if not c.isspace() and c not in "-_.") or plain


def check_product(name: str) -> str:
    """Return `name`, for which a model may be trained, in the form in which products are compared.

    Raises UsageError for one that cannot name a folder on every system, or that stands for all products in any case.
    """
    name = composed(name)
    if name.casefold() == ALL_PRODUCTS:
        raise UsageError(f"product: expected the name of one product; found {name!r}, which stands for all of them")
    if not name or not name.isprintable() or safe_name(name, PRODUCT_BYTES_MAX) != name:
        raise UsageError(
            f"product: expected a plain name of at most {PRODUCT_BYTES_MAX} bytes, without a leading '.', '-' or '~' "
            f'and without any of < > : " / \\ | ? *; found {name!r}'
        )
    return name


def destination(kind: str, product: str, received_at: datetime, name: str, id: str) -> str:
    """Return where a file goes, relative to the root: `<kind>/<product>/<date>/<stem>.<ULID><suffix>`."""
    stem, suffix = split_suffix(safe_name(name))
    return f"{kind}/{product}/{received_at:%Y-%m-%d}/{stem}.{id}{suffix}"


def plainer_name(path: str, id: str) -> str:
    """Return `path`, that of a delivery, with a file name that any file system takes; unchanged where it has one."""
    folder, _, name = path.rpartition("/")
    stem, suffix = split_suffix(name)
    if not stem.endswith(f".{id}"):
        return path
    kept = suffix if _PLAIN_SUFFIX.fullmatch(suffix) else ""
    return f"{folder}/{_plain(stem[: -len(id) - 1])}.{id}{kept}"


def plainer_folder(path: str) -> str:
    """Return `path`, that of a delivery, with a folder of the product that any file system takes."""
    kind, product, *rest = path.split("/")
    return "/".join([kind, _plain(product), *rest])


def product_in(folder: str) -> str:
    """Return the product whose images are delivered to the folder of that name, perhaps a plainer one."""
    return safe_name(unquote(folder, errors="surrogateescape"), PRODUCT_BYTES_MAX)


def split_suffix(name: str) -> tuple[str, str]:
    """Return the stem and the last suffix of `name`; an overlong suffix counts as part of the stem."""
    suffix = PurePosixPath(name).suffix
    if not suffix or len(suffix.encode()) > _SUFFIX_BYTES_MAX:
        return name, ""
    return name[: -len(suffix)], suffix


def _plain(name: str) -> str:
    escaped = _NOT_PLAIN.sub(lambda match: _percent(match[0]), name)
    if _DEVICE.match(escaped) or escaped[:1] == ".":
        escaped = _percent(escaped[0]) + escaped[1:]
    if len(escaped) > _PLAIN_BYTES_MAX:
        # Not in the middle of an escape.
        escaped = re.sub(r"%[0-9A-F]?$", "", escaped[:_PLAIN_BYTES_MAX])
    return escaped[:-1] + "%2E" if escaped[-1:] == "." else escaped


def _percent(character: str) -> str:
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", errors))
