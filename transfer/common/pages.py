"""Pages that need nothing but themselves: templates filled in, images inside."""

from __future__ import annotations

import base64
import functools
import io
from typing import Any

import numpy as np


@functools.cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("transfer.common"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def render(template: str, **values: Any) -> str:
    """Fill in a template of `transfer/templates`."""
    from jinja2 import UndefinedError
    from markupsafe import Markup

    try:
        return Markup(_environment().get_template(template).render(**values))
    except UndefinedError as error:
        raise ValueError(f"a page wants what is not there: {error}") from error


def data_uri(image: np.ndarray | bytes) -> str:
    """Put an image into an address, so that a page carries it along."""
    from PIL import Image

    if not isinstance(image, bytes):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        image = stream.getvalue()
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")
