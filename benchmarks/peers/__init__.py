"""Other systems driven beside dstore: the same files, the same machine, loopback only."""
