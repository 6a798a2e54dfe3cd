"""The front that speaks RESP, the protocol of Redis clients."""
