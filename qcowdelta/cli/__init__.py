"""The command line: it parses, calls the library, and shows. It never touches bytes.

Commands live one to a module and import the library only when they run, so that ``--help`` is
quick.
"""

from __future__ import annotations

import os
import signal
import sys

import rich_click as click
from click.exceptions import Exit

from .apply import apply
from .check import check
from .combine import compose, index, invert
from .convert import convert
from .diff import diff
from .info import info
from .inspect import inspect
from .live import live
from .memory import keep_freed_memory, look_for_cycles_seldom
from .verify import verify

ERROR = 2
_SWITCH_INTERVAL = 0.0002
_AGAIN = 0.01  # s


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qcowdelta")
def cli() -> None:
    """Find the difference between two disk images; write it as a qcow2 overlay or a patch.

    Images are qcow2 (any version, snapshot or backing chain) or raw, and through QEMU's
    programs vmdk, vdi, vhdx, vpc, luks, qed, qcow or parallels.
    """


for command in (
    diff,
    apply,
    convert,
    inspect,
    info,
    check,
    verify,
    compose,
    invert,
    index,
    live,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; every error is one line on standard error and exit status 2."""
    # numpy's linear algebra is not used, but would start a thread for each processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Threads hand the interpreter over after calls of some microseconds, not of milliseconds.
    sys.setswitchinterval(_SWITCH_INTERVAL)
    keep_freed_memory()
    look_for_cycles_seldom()
    sys.unraisablehook = _interrupt_again
    sys.exit(_run())


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
    from ..errors import QcowDeltaError, printable

    try:
        status = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, which is its own business: be quiet, also at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
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


def _fail(message: str) -> int:
    text = " ".join(message.split())
    print(f"qcowdelta: error: {text}", file=sys.stderr)  # noqa: T201
    return ERROR
