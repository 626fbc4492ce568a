"""`python -m basedbench` is the same as `basedbench`."""

import os

from basedbench.signals import heed_signals


def main() -> None:
    """Run the command line; exit code 2 says that the user can mend it."""
    os.umask(os.umask(0o077) & 0o077)  # what we write we may read: another umask lets no process begin
    heed_signals()  # before what takes time to import
    from basedbench.cli import main

    main()


if __name__ == "__main__":
    main()
