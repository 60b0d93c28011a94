"""What all tests share: hypothesis profiles and, where wanted, a folder on a faster disk."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, Phase, settings

# A suite that was started in the background is deaf to interrupts, and its children would be too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples start QEMU programs: shrinking one would take many minutes, so only "long" does it.
_common = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_found = settings(
    _common,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    report_multiple_bugs=False,
)
settings.register_profile("quick", _found, max_examples=6)
settings.register_profile("default", _found, max_examples=85)
settings.register_profile("ci", _found, max_examples=85)
settings.register_profile("long", _common, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
