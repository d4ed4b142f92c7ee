"""Makes the peers' virtual environments: one each for torch, TensorFlow and Keras-RS.

    python experiments/benchmarks/peers/make_envs.py --envs=DIR [--only=torch,tf]

About 4 GB in all. Uses the Python that runs this, which should be 3.11, with which these versions
were tried. An environment that is there already is left alone.
"""

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = {
    "torch": (
        "torch==2.13.0",
        "implicit==0.7.3",
        "faiss-cpu==1.15.1",
        "scann==1.4.2",
        "scipy",
        "numpy==2.4.6",
    ),
    "tf": ("tensorflow==2.21.0", "tensorflow-recommenders==0.7.7"),
    "keras_rs": ("keras-rs==0.4.0", "keras==3.15.1", "jax==0.10.2"),
}


def default_folder() -> Path:
    """Where environments are kept unless told otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "recjax-benchmarks" / "envs"


def main() -> None:
    """Makes what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--envs", type=Path, default=default_folder())
    parser.add_argument("--only", default=",".join(PACKAGES), help="names, with commas")
    flags = parser.parse_args()
    for name in flags.only.split(","):
        if name not in PACKAGES:
            parser.error(f"--only: no environment {name!r}: there are {', '.join(PACKAGES)}")
        make(flags.envs.absolute() / name, PACKAGES[name])


def make(folder: Path, packages: tuple[str, ...]) -> None:
    """One environment; if the installation fails, none is left."""
    if (folder / "done").exists():
        print(f"{folder}: there already")
        return
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
    if subprocess.run(command).returncode:
        shutil.rmtree(folder)
        sys.exit(f"error: {folder.name}: pip could not install {', '.join(packages)}")
    (folder / "done").touch()
    print(f"{folder}: made")


if __name__ == "__main__":
    main()
