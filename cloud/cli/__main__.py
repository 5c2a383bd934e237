"""``python -m cloud.cli``: the same as ``edgeloop``."""

from cloud.cli.app import main

main()
