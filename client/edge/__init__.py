"""The exported training step, and a client that runs it without torch.

:mod:`client.edge.trace` and :mod:`client.edge.export` make a program where torch is installed;
everything else here runs where it is not.
"""
