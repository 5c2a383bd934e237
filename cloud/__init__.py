"""The cloud side: trains, compresses, delivers, measures and decides."""

import os

# Read once, when gRPC is first used, so it has to be set before anything imports it. gRPC's handlers around
# fork() can stop every thread for as long as a call is under way; nothing here forks without exec, which is
# all that they are for.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
