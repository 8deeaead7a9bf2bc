"""Which names a product may have: those that are a folder's name as they stand."""

from __future__ import annotations

from service.errors import UsageError
from service.names import PRODUCT_BYTES_MAX, safe_name

ALL_PRODUCTS = "all"
"""What `tamis train --product` takes for every product at once; no model is ever trained for a product of that name."""


def check_product(name: str) -> str:
    """Return `name`, for which a model may be trained.

    Raises UsageError for one that cannot be the name of a folder on every system as it stands, or that stands for
    all products, whatever its case.
    """
    if name.casefold() == ALL_PRODUCTS:
        raise UsageError(f"product: expected the name of one product; found {name!r}, which stands for all of them")
    if not name or not name.isprintable() or safe_name(name, PRODUCT_BYTES_MAX) != name:
        raise UsageError(
            f"product: expected a plain name of at most {PRODUCT_BYTES_MAX} bytes, without a leading '.', '-' or '~' "
            f'and without any of < > : " / \\ | ? *; found {name!r}'
        )
    return name
