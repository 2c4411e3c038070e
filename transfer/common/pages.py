"""Self-contained HTML pages: templates, and images inside the page."""

from __future__ import annotations

import base64
import functools
import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("transfer.common"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def render(template: str, **values: object) -> Markup:
    """Fill in a template of `transfer/common/templates`; text is escaped, `Markup` is not."""
    from jinja2 import UndefinedError
    from markupsafe import Markup

    try:
        return Markup(_environment().get_template(template).render(**values))
    except UndefinedError as error:
        raise ValueError(f"Template {template!r} needs a value that was not passed: {error}.") from error


def data_uri(image: np.ndarray | bytes) -> str:
    """Return an image, PNG bytes or pixels of shape (height, width, 3), as a `data:` address."""
    from PIL import Image

    if not isinstance(image, bytes):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        image = stream.getvalue()
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")
