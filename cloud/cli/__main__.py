"""``python -m cloud.cli``: the same as ``edgeloop``."""

from cloud.cli import main

main()
