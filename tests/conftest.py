"""What all tests share: hypothesis profiles and, where wanted, a folder on a faster disk."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

# Examples start QEMU programs: shrinking one would take many minutes, so only "long" does it.
_FOUND = {"phases": [Phase.explicit, Phase.reuse, Phase.generate], "report_multiple_bugs": False}
_COMMON = {
    "deadline": None,
    "derandomize": False,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("quick", max_examples=6, **_FOUND, **_COMMON)
settings.register_profile("default", max_examples=85, **_FOUND, **_COMMON)
settings.register_profile("ci", max_examples=85, **_FOUND, **_COMMON)
settings.register_profile("long", max_examples=1000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
