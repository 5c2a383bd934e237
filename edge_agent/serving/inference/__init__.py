"""Generated protobuf messages of the Open Inference Protocol. Do not edit: run ``make protos``."""
