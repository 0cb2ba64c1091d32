"""What the HTML pages share: their templates, and pictures inside a page."""

import base64
import io
from typing import Any

import jinja2
from numpy.typing import NDArray


def environment() -> jinja2.Environment:
    """A new environment for the files in `templates/`, which escapes values and rejects unknown names."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader('dualcl_jax.reports', 'templates'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def jpeg_uri(pixels: NDArray, **options: Any) -> str:
    """A picture [H, W, 3] uint8 as a data URI, with the options of Pillow's JPEG writer."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, 'JPEG', **options)
    return 'data:image/jpeg;base64,' + base64.b64encode(content.getvalue()).decode()
