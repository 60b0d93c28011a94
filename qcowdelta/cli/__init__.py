"""The command line: it parses, calls the library, and shows. It never touches bytes.

Commands live one to a module and import the library only when they run, so that ``--help`` is
quick. Nothing is imported here but what Python has loaded anyway, so that an interrupt finds
:func:`main` at work.
"""

from __future__ import annotations

import os
import signal
import sys

ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
_SWITCH_INTERVAL = 0.0002
_AGAIN = 0.01  # s


def main() -> None:
    """Run the command line; every error is one line on standard error and exit status 2."""
    try:
        status = _start()
    except KeyboardInterrupt:
        status = _interrupted()
    sys.exit(status)


def _start() -> int:
    # numpy's linear algebra is not used, but would start a thread for each processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Threads hand the interpreter over after calls of some microseconds, not of milliseconds.
    sys.setswitchinterval(_SWITCH_INTERVAL)
    sys.unraisablehook = _interrupt_again
    from .memory import keep_freed_memory, look_for_cycles_seldom

    keep_freed_memory()
    look_for_cycles_seldom()
    return _run()


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Have an interrupt come again that came where Python could only drop it, as while cleaning up.

    Not at once: it would come within this function, and be dropped again.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    else:
        sys.__unraisablehook__(unraisable)


def _run() -> int:
    import click
    from click.exceptions import Exit

    from ..errors import QcowDeltaError, printable
    from .commands import cli

    try:
        status = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message())
    except click.Abort:
        return _interrupted()
    except BrokenPipeError:
        return _nobody_reads()
    except SystemExit as stop:
        # With 1, which would mean a difference, click and rich end where a pipe is broken.
        return _nobody_reads() if stop.code == 1 else ERROR
    except QcowDeltaError as error:
        return _fail(str(error))
    except OSError as error:
        name = f"{printable(error.filename)}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}")
    except Exception as error:  # a bug of ours: still one line, unless asked for more
        if os.environ.get("QCOWDELTA_TRACEBACK"):
            raise
        return _fail(
            f"internal error: {type(error).__name__}: {error} "
            "(please report it, with what QCOWDELTA_TRACEBACK=1 shows)"
        )
    return status if isinstance(status, int) else 0


def _interrupted() -> int:
    _fail("interrupted")
    return INTERRUPTED


def _nobody_reads() -> int:
    """End as if by the signal: who reads our output has gone, which is its own business."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or else Python complains at its end
    return BROKEN_PIPE


def _fail(message: str) -> int:
    text = " ".join(message.split())
    print(f"qcowdelta: error: {text}", file=sys.stderr)  # noqa: T201
    return ERROR
