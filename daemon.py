"""Entry point of rsd; spawned children import it again, so it only hands over."""

from rsd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
