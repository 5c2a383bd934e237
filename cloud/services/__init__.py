"""gRPC servicers: wire messages stop here, values go on."""
