"""``python -m fabric.cli``."""

from fabric.cli.entry import main

if __name__ == "__main__":
    main()
