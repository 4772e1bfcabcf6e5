"""`labelemb` and `python -m labelemb`: the door. It opens to the command line, and says how everything ends."""

import signal
import sys

from labelemb.extras import how_to_install


def main() -> None:
    """The command `labelemb`: exit code 0, 1 (a run failed), 2 (input), 130 and 143 (stopped, resumable)."""
    try:
        from labelemb.training.stopping import expect_interrupts

        expect_interrupts()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before it was expected, or while a mistake was told
        print("labelemb: interrupted", file=sys.stderr)
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: the interpreter's own end would show a traceback
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command; its exit code, after saying what went wrong."""
    try:
        from labelemb.commands.app import command_line
        from labelemb.commands.failures import exit_code_of, say_interrupted
    except ModuleNotFoundError as error:
        print(f"labelemb: the command line needs {error.name}: {how_to_install(error.name)}", file=sys.stderr)
        return 2
    given = [argument for argument in arguments if argument != "--traceback"]  # which goes with every command
    try:
        code = command_line().main(given, prog_name="labelemb", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        return exit_code_of(error, given, traceback=given != arguments)
    return say_interrupted() if code == 130 else int(code or 0)  # typer makes 130 of Ctrl-C


if __name__ == "__main__":
    main()
