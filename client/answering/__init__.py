"""Runtimes that answer on a device, behind one interface: torch, ONNX Runtime and llama.cpp.

:mod:`client.inference` chooses and verifies; what is here computes. Modules of ONNX Runtime and
llama.cpp need no torch.
"""
