"""`python -m dstore`: the same as the `dstore` command."""

from dstore.interfaces.cli.main import main

if __name__ == "__main__":
    main()
