"""Devices behind TVM's RPC tracker: bridges that serve phones, and the client that tries candidates on all of them."""
