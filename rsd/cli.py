"""The command line: flags and commands, and how mistakes end."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
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
    "strategy": "what was learned: for people, for programs and for the next run",
    "db": "look after what is stored: `db rebuild-stats`",
    "demo": "the whole job on this machine, simulated: no GPU, no key",
    "simulate": "the simulator alone: an OpenAI-compatible server that plays vLLM and grader",
}
#: Flags whose values may begin with a minus and hold commas.
RANGES = ("--temperature-range", "--top-p-range", "--top-k-range")


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, and that takes no flag for another: what a beginning
    of a name means changes with every new flag.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | options)

    def error(self, message: str) -> NoReturn:
        """A wrong flag: one line that names it, with the nearest known one."""
        if message.startswith("unrecognized arguments: "):
            given = message.partition(": ")[2].split()[0].partition("=")[0]
            known = [o for action in self._actions for o in action.option_strings]
            close = difflib.get_close_matches(given, known, n=1)
            message = f"unknown argument {given}" + (f"; did you mean {close[0]}?" if close else "")
        if message.startswith("argument COMMAND: invalid choice: "):
            given = message.partition("choice: ")[2].partition(" (")[0].strip("'")
            close = difflib.get_close_matches(given, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "one of " + ", ".join(COMMANDS)
            message = f"unknown command {given}; {hint}"
        raise UserError(message)


def parser(only: str = "") -> Parser:
    """The parser of all commands; of just one (`only`) it is faster to build."""
    top = Parser(
        prog="daemon.py",
        description="rsd: images in, graded netlists out.",
        epilog="`daemon.py COMMAND --help` explains one command.",
    )
    top.add_argument("--version", action="version", version=f"rsd {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, purpose in COMMANDS.items():
        if only in COMMANDS and name != only:
            continue
        sub = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:])
        module = importlib.import_module(f"rsd.commands.{name}")
        module.add_arguments(sub)
        sub.set_defaults(main=module.main, parser=sub)
    return top


def joined(argv: list[str]) -> list[str]:
    """`--top-k-range -1,40` as `--top-k-range=-1,40`: argparse would take the list for a flag."""
    found: list[str] = []
    for word in argv:
        if found and found[-1] in RANGES and word[:1] == "-" and word[1:2].isdigit():
            found[-1] += "=" + word
        else:
            found.append(word)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code (docs/contract.md)."""
    os.umask(os.umask(0o022) | 0o022)  # nothing of ours is for others to write
    words = joined(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else ""
    try:
        top = parser(command)
        args, unknown = top.parse_known_args(words)
        if unknown:
            wrong: Parser = getattr(args, "parser", top)
            wrong.error("unrecognized arguments: " + " ".join(unknown))
        if args.command is None:
            top.print_help()
            return 2
        call: Any = args.main
        code = int(call(args))
        sys.stdout.flush()
        return code
    except UserError as e:
        complain(str(e))
        return 2
    except StateError as e:
        complain(str(e))
        return 4 if command == "status" else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `... | head`: nobody reads on, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        complain(f"{e.filename}: {e.strerror}" if e.filename is not None else str(e))
        return 4 if command == "status" else 1


def complain(message: str) -> None:
    """One line, whatever a path or a value holds."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    print(f"rsd: {line}", file=sys.stderr)
