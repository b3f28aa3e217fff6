"""The command line: flags and commands, and how mistakes end."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from typing import Any, NoReturn

from rsd import __version__
from rsd.errors import StateError, UserError

#: Command -> what it is for; each is a module of `rsd.commands` with `add_arguments` and `main`.
COMMANDS = {
    "run": "work: watch the folder, or with --once process what lies in it and exit",
    "status": "how the daemon is doing, from any other process",
    "show": "all that is known of one image",
    "retry": "take images up again",
    "check": "validate everything and estimate the cost before any money is spent",
    "demo": "the whole job on this machine, simulated: no GPU, no key",
    "simulate": "the simulator alone: an OpenAI-compatible server that plays vLLM and grader",
}


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """A wrong flag: one line that names it, with the nearest known one."""
        if message.startswith("unrecognized arguments: "):
            given = message.partition(": ")[2].split()[0]
            known = [o for action in self._actions for o in action.option_strings]
            close = difflib.get_close_matches(given.partition("=")[0], known, n=1)
            message = f"unknown argument {given}" + (f"; did you mean {close[0]}?" if close else "")
        raise UserError(message)


def parser() -> Parser:
    """The parser of all commands."""
    top = Parser(
        prog="daemon.py",
        description="rsd: images in, graded netlists out.",
        epilog="`daemon.py COMMAND --help` explains one command.",
    )
    top.add_argument("--version", action="version", version=f"rsd {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, purpose in COMMANDS.items():
        sub = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:])
        module = importlib.import_module(f"rsd.commands.{name}")
        module.add_arguments(sub)
        sub.set_defaults(main=module.main, parser=sub)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code (SPEC section 2)."""
    try:
        args, unknown = parser().parse_known_args(argv)
        if args.command is None:
            parser().print_help()
            return 2
        if unknown:
            args.parser.error("unrecognized arguments: " + " ".join(unknown))
        call: Any = args.main
        return int(call(args))
    except UserError as e:
        print(f"rsd: {e}", file=sys.stderr)
        return 2
    except StateError as e:
        print(f"rsd: {e}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
