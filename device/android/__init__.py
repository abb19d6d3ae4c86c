"""The runner as a native Android program: how it is built without the NDK, and how what was built is audited."""
