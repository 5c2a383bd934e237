"""The local inference API: the Open Inference Protocol, version 2, for applications on this gateway.

`local_api` starts and stops it; `model_service` is what both transports call; `grpc_api` and `rest_api` are
the transports; `tensors` and `rest_messages` are pure and take hostile bytes.

Nothing is imported here: the agent loads only the transports that it was told to serve, and a program that
imports this package for another reason never meets the protobuf messages of the protocol, of which a process
can hold only one registration (a client library may have brought its own).
"""
