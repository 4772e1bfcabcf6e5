"""`labelemb` and `python -m labelemb`: the command line, or what to install for it."""

import sys

from labelemb.extras import how_to_install


def main() -> None:
    """Run the command line; where the library was installed without it, say so and exit with 2."""
    try:
        from labelemb.training.stopping import expect_interrupts

        expect_interrupts()
        from labelemb.commands.app import main as run
    except ModuleNotFoundError as error:
        sys.exit(_say_what_is_missing(error.name))
    except KeyboardInterrupt:  # in the few milliseconds before it was expected
        print("labelemb: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


def _say_what_is_missing(module: str | None) -> int:
    print(f"labelemb: the command line needs {module}: {how_to_install(module)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
