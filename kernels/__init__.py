"""Triton kernels, one file per op; installed as `aigc_engine.kernels`."""
