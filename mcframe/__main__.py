"""The `mcframe` command, and `python -m mcframe` where its script is not on the path."""

import os
import signal


def main() -> None:
    """Run the command. Until the command handles signals, one ends it at once, with one line."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _end)
    from mcframe.cli.app import main as run

    run()


def _end(number: int, frame: object) -> None:
    """End this process, in which nothing has begun: an exception would be lost in some imports."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    main()
