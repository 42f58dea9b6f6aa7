"""The `mcframe` command, and `python -m mcframe` where its script is not on the path."""

import signal


def main() -> None:
    """Run the command. Until it handles signals, a Ctrl-C ends it without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mcframe.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
