"""What the book needs from the system, which pip cannot bring: Python, its venv module, a browser.

Only the standard library, and old Python too: this runs before anything is installed.

    python3 tests/system.py                 is there what `make book` needs?
    python3 tests/system.py --browser       ... and what `make test` needs?
    python3 tests/system.py --packages      names of the missing Debian packages
"""

import os
import shutil
import sys

# Chromium and its relatives, in the order in which we would rather have them.
BROWSERS = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)


def find_browser() -> "str | None":
    """Path of the browser that the tests drive, or None; ROBUSTLAB_BROWSER overrules the search."""
    chosen = os.environ.get("ROBUSTLAB_BROWSER")
    if chosen:
        return shutil.which(chosen)
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def missing_packages(browser: bool) -> "list[str]":
    """Debian packages to install before `make book` (or, with `browser`, `make test`) can run."""
    packages = []
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        packages.append("python3-venv")
    if browser and find_browser() is None:
        packages.append("chromium")
    return packages


def main(arguments: "list[str]") -> int:
    """Exit with 0 when all is there; otherwise say what to type, and exit with 1."""
    packages = missing_packages(browser="--browser" in arguments)
    names = " ".join(packages)
    if "--packages" in arguments:
        print(names)
        return 0
    if sys.version_info < (3, 11):  # noqa: UP036 - the system's Python runs this, whichever it is
        print(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}.")
        print("If you have a newer one, name it:\n\n    make PYTHON=python3.12 book\n")
        return 1
    if packages:
        print(f"The system lacks {names}. Type\n")
        print(f"    sudo apt-get update && sudo apt-get install -y {names}\n")
        if "chromium" in packages:
            print("or name a Chromium or Chrome that you have:\n")
            print("    ROBUSTLAB_BROWSER=/path/to/it make test\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
