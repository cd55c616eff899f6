"""`python -m lorsmerge_cli` is the `lorsmerge` command, and so is the script of that name."""

import sys


def main() -> None:
    """Run the command line; a Ctrl-C while it loads exits without a traceback, as one later does."""
    try:
        from lorsmerge_cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
