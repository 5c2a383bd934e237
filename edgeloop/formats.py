"""The words for what an artifact's bytes are, as a manifest has them."""

from typing import Final

ONNX_FORMAT: Final = "onnx"
PACKED_FORMAT: Final = "onnx-packed-v1"
#: Decision rules: ``edgeloop.rules``.
RULES_FORMAT: Final = "rules"
#: What a reader of this version knows; it refuses all others.
FORMATS: Final = frozenset({ONNX_FORMAT, PACKED_FORMAT, RULES_FORMAT})
#: Those that hold the executable in another form: a manifest gives its digest and size as well.
PACKED_FORMATS: Final = frozenset({PACKED_FORMAT})
