"""Generated protobuf messages and stubs of edgeloop.v1. Do not edit: run ``make protos``."""
