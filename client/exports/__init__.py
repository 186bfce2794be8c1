"""Adapters in the formats of other runtimes: GGUF for llama.cpp, merged weights, ONNX graphs.

Guarantee:
    That of the adapter, unchanged: an export is a function of a released adapter and of the public
    base model alone (post-processing), so that it spends no privacy budget.
"""
