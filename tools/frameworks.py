"""One virtual environment a training framework, and the tests of `attach` against that framework's own classes in it.

The frameworks do not agree on what they need beside them, so each has its own environment below .cache/frameworks, from
a hash-pinned requirements/frameworks-*.txt. torch and what it brings are not installed again: a path file leads to
.venv's packages, behind the environment's own. `make test-frameworks` runs `run`, `make lock` runs `lock`. The loggers
of a bench have such an environment as well, which `install` makes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from install import PYTHON, ROOT, SetupError, find_uv, uv_environment

HOME = ROOT / ".cache" / "frameworks"
GROUPS = {
    "transformers": ["transformers==5.23.0"],
    "megatron": ["megatron-core==0.16.1"],
    "torchtitan": ["torchtitan==0.3.0"],
    "deepspeed": ["deepspeed==0.19.8", "transformers==5.23.0"],
    "olmo_core": ["ai2-olmo-core==3.0.0"],
    "automodel": ["nemo-automodel==0.7.0"],
}
LOGGERS = {"loggers": ["mlflow-skinny==3.17.2", "tensorboard==2.20.0", "trackio==0.43.0", "wandb==0.31.0"]}
"""What `make bench NAME=probe` measures beside ours, about 350 MB. They stay apart from .venv too: they bring uvloop,
which the server takes when it is there, and no bench would measure what is shipped."""
FROM_THE_PROJECT = ("cuda-bindings", "cuda-pathfinder", "cuda-toolkit", "nvidia-", "torch", "triton")
"""What .venv has already; a name that ends in - is a prefix"""


def say(sentence: str) -> None:
    print(f"frameworks: {sentence}", file=sys.stderr, flush=True)


def requirements(group: str) -> Path:
    return ROOT / "requirements" / f"frameworks-{group.replace('_', '-')}.txt"


def lock(group: str) -> None:
    """Resolves one group beside torch 2.13 and pins all but what the project's own environment brings."""
    command = [str(find_uv()), "pip", "compile", "-q", "-", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header"]
    wanted = "\n".join([*(GROUPS | LOGGERS)[group], "torch>=2.13,<2.14"])
    environment = uv_environment()
    plain = subprocess.run(command, input=wanted, text=True, cwd=ROOT, env=environment, check=True, stdout=-1).stdout
    names = {line.split("==")[0] for line in plain.splitlines() if "==" in line and not line.startswith(" ")}
    ours = [name for name in sorted(names) if name in FROM_THE_PROJECT or name.startswith("nvidia-")]
    for name in ours:
        command += ["--no-emit-package", name]
    output = subprocess.run(command, input=wanted, text=True, cwd=ROOT, env=environment, check=True, stdout=-1).stdout
    requirements(group).write_text(output)


def install(group: str) -> Path:
    """Brings a group's environment to what its requirement file says; its Python."""
    home, listed = HOME / group, requirements(group)
    python, mark = home / "bin" / "python", home / "trimtab.stamp"
    text = listed.read_bytes() + Path(__file__).read_bytes() + str(PYTHON.resolve()).encode() + sys.version.encode()
    wanted = hashlib.sha256(text).hexdigest()
    if mark.exists() and mark.read_text() == wanted:
        return python
    uv, environment = str(find_uv()), uv_environment()
    say(f"installing {listed.relative_to(ROOT)} into {home.relative_to(ROOT)}")
    subprocess.run([uv, "venv", "-q", "--clear", "--python", str(PYTHON), str(home)], env=environment, check=True)
    exact = ["--no-deps", "--require-hashes", "-r", str(listed)]
    subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *exact], env=environment, check=True)
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = [
        subprocess.run([str(one), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
        for one in (python, PYTHON)
    ]
    Path(packages[0], "trimtab.pth").write_text(packages[1] + "\n")
    mark.write_text(wanted)
    return python


def test(group: str, arguments: list[str]) -> int:
    """Runs one group's tests; pytest's exit status, 1 if a test was skipped."""
    python = install(group)
    begun = time.monotonic()
    environment = {**os.environ, "TRIMTAB_FRAMEWORK": group, "OMP_NUM_THREADS": "1"}
    # the frameworks' own warnings are not this project's errors
    command = [
        str(python),
        "-m",
        "pytest",
        "tests/frameworks",
        "-p",
        "no:cacheprovider",
        "-o",
        "filterwarnings=default",
    ]
    command += ["--disable-warnings", "--durations=3", "-p", "no:xdist", *arguments]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    say(f"{group}: {'passed' if status == 0 else 'failed'} in {time.monotonic() - begun:.0f} s")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "lock", "install"])
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS | LOGGERS)}; run tests all frameworks")
    parser.add_argument("--pytest", default="", help="more arguments for pytest, as one: --pytest='-k padding'")
    options = parser.parse_args()
    groups = options.groups or list(GROUPS if options.what == "run" else GROUPS | LOGGERS)
    if unknown := set(groups) - set(GROUPS if options.what == "run" else GROUPS | LOGGERS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    try:
        if options.what == "lock":
            for group in groups:
                lock(group)
            return 0
        if options.what == "install":
            for group in groups:
                install(group)
            return 0
        return max(test(group, options.pytest.split()) for group in groups)
    except SetupError as error:
        say(str(error))
    except subprocess.CalledProcessError as error:
        say(f"this command failed with {error.returncode}: {' '.join(map(str, error.cmd))}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
