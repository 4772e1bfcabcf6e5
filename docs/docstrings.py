"""For the reference: what stands under "Example:" in a docstring is code, as what stands under "Examples:" is."""

from typing import Any

import griffe


class ExampleIsExamples(griffe.Extension):
    """The parser knows the plural alone, and would make a quotation of the singular."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
