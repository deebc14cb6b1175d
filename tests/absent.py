"""What happens where a package is missing, whether it is here or not: asked in a process that cannot import it."""

from __future__ import annotations

import subprocess
import sys


def error_without(package: str, call: str) -> str:
    """The message of the `ConfigError` of a call of our API, such as "load_policy('hf:x')", without a package."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from label_studio_segagent import load_policy, load_segmenter\n"
        "from label_studio_segagent.errors import ConfigError\n"
        f"try: {call}\nexcept ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
