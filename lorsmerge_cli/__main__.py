"""`python -m lorsmerge_cli` is the `lorsmerge` command, and so is the script of that name."""

import sys


def main() -> None:
    """Run the command line; a Ctrl-C before it is loaded ends as quietly as one later."""
    try:
        from lorsmerge_cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
