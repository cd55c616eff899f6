"""`python -m lorsmerge_cli` is the `lorsmerge` command."""

from lorsmerge_cli.app import main

if __name__ == "__main__":
    main()
