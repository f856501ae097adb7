"""Lets the reference show our `Example:` sections as code: its parser knows the plural alone."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Reads `Example:` as `Examples:`."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the heading in one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M
            )
