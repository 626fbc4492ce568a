"""`python -m basedbench` is the same as `basedbench`."""

from basedbench.cli import main

if __name__ == "__main__":
    main()
