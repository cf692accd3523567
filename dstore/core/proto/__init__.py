"""Published protobuf schemas and the modules generated from them.

Nothing here is written by hand but the `.proto` files; `docs/reference/wire.md` tells how a
module is generated again.
"""
