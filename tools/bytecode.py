"""Compiles the functions of a build, so that Lambda need not compile them at every cold start.

    python3.13 -m tools.bytecode --for python3.13 .aws-sam/build     (make deploy ARGS=--bytecode)

It has to run with the runtime's minor version of Python: bytecode of other versions is ignored, and takes
room. It writes `unchecked-hash` bytecode, because SAM's zip sets the time of every file to 1980, by which
bytecode with timestamps would look stale, and because only a deployment changes the files
(https://docs.python.org/3/reference/import.html#cached-bytecode-invalidation).
"""

from __future__ import annotations

import argparse
import compileall
import sys
from collections.abc import Sequence
from pathlib import Path
from py_compile import PycInvalidationMode


class NotCompiled(Exception):
    """A folder cannot be compiled; the message says what to do."""


def write(folder: Path) -> None:
    """Compile every module below a folder, into its __pycache__. Raises NotCompiled."""
    mode = PycInvalidationMode.UNCHECKED_HASH
    # Tracebacks show the paths in Lambda, not those of the build.
    compiled = compileall.compile_dir(
        folder, quiet=1, force=True, invalidation_mode=mode, stripdir=str(folder), prependdir="/var/task"
    )
    if not compiled:
        raise NotCompiled(f"not every module in {folder} could be compiled: see above, and build anew")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bytecode",
        description="Compile the functions of a build for the Python that runs this.",
        epilog="Example: python3.13 -m tools.bytecode --for python3.13 .aws-sam/build",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--for", dest="runtime", metavar="RUNTIME", help="refuse unless this is its Python")
    options = parser.parse_args(arguments)
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if sys.implementation.name != "cpython" or options.runtime not in (None, own):
        print(f"the functions run on {options.runtime}: bytecode of {own} would not count", file=sys.stderr)
        return 1
    try:
        for folder in options.folders:
            for function in _functions(folder):
                write(function)
    except NotCompiled as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _functions(folder: Path) -> list[Path]:
    """Give the functions' folders of a SAM build; any other folder itself. Raises NotCompiled."""
    if not folder.is_dir():
        raise NotCompiled(f"{folder} is no folder: run `sam build` first")
    built = (folder / "template.yaml").exists()
    return sorted(function for function in folder.iterdir() if function.is_dir()) if built else [folder]


if __name__ == "__main__":
    sys.exit(main())
