"""ONNX to OpenCL: schedules for Adreno, a static launch plan, and the `.clbundle` that holds both."""
