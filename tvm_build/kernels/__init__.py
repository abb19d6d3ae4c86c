"""Our kernels for Adreno, each a TIR function written with TVM's IRBuilder."""
