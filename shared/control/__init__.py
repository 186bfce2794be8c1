"""The control service's interface: the protocol buffers that server and clients share."""
