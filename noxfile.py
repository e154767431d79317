"""Development sessions: `nox -s NAME`. `nox --list` shows them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
# For all tests; a few start faster in one process.
PARALLEL = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")


def install(session: nox.Session, *groups: str, more: Sequence[str] = (), without: Sequence[str] = ()) -> None:
    """Install fxprune, editable, with the named dependency groups."""
    requirements = [r for r in nox.project.dependency_groups(PROJECT, *groups) if r not in without]
    # Groups name the project's own extras as fxprune[extra]; the editable install includes them.
    own = [requirement for requirement in requirements if requirement.startswith("fxprune")]
    extras = ",".join(requirement.removeprefix("fxprune[").removesuffix("]") for requirement in own)
    others = [requirement for requirement in requirements if requirement not in own]
    session.install("-e", f".[{extras}]" if extras else ".", *others, *more)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests."""
    install(session, "test")
    session.run("pytest", *(session.posargs or PARALLEL))


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Run the tests on each supported Python that is installed."""
    install(session, "test")
    session.run("pytest", *(session.posargs or PARALLEL))


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests on the lowest Python with the lowest versions of fxprune's own dependencies."""
    needed = [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
    install(session, "test", more=needed, without=["torchao"])
    session.run("pytest", *(session.posargs or PARALLEL))


@nox.session
def build(session: nox.Session) -> None:
    """Build wheel and sdist, and prune a small model with the wheel in an empty environment."""
    session.install(*nox.project.dependency_groups(PROJECT, "build"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    files = [str(path) for path in sorted(Path("dist").iterdir())]
    session.run("twine", "check", "--strict", *files)
    session.run("python", "tests/wheel.py", *(file for file in files if file.endswith(".whl")))


def check_style(session: nox.Session) -> None:
    """Style, formatting, and which package imports which; none of it imports fxprune or torch."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-logo")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and import contracts."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    check_style(session)


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    install(session, "types")
    session.run("mypy", *session.posargs)


@nox.session
def ci(session: nox.Session) -> None:
    """Run lint, types and tests, in one environment: torch takes a minute to install."""
    install(session, "lint", "types", "test")
    check_style(session)
    session.run("mypy")
    session.run("pytest", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; `nox -s docs -- serve` shows it while you write."""
    # mkdocstrings reads the source, so it needs neither fxprune nor torch.
    session.install(*nox.project.dependency_groups(PROJECT, "docs"))
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session
def demo(session: nox.Session) -> None:
    """Prune a trained EfficientNet-Lite0 and compare it with the original on photographs."""
    install(session, "demo")
    session.run("python", "docs/demo.py", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the model matrix; arguments choose models, list files or `--workers 2`."""
    install(session, "test")
    session.run("python", "tests/benchmarks/coverage.py", *(session.posargs or ["--at-least", "200"]))


@nox.session
def libraries(session: nox.Session) -> None:
    """Try the models of other libraries and write docs/libraries.md anew (takes two hours)."""
    install(session, "test")
    session.install("-r", "tests/benchmarks/libraries.txt")
    session.run("python", "tests/benchmarks/libraries.py", *session.posargs)
    session.run("python", "tests/benchmarks/libraries.py", "--report")


@nox.session
def nightly(session: nox.Session) -> None:
    """Prune 1,000 new random networks, or as many as FXPRUNE_FUZZ in the environment says."""
    install(session, "test")
    session.run(
        "pytest", "tests/test_fuzz.py", *session.posargs, env={"FXPRUNE_FUZZ": os.environ.get("FXPRUNE_FUZZ", "1000")}
    )


@nox.session
def exports(session: nox.Session) -> None:
    """Export each model of the cross-section as ONNX and .pt2, run the results, and compile it (takes an hour)."""
    install(session, "test")
    session.run("pytest", "tests/files/test_exporting.py", *session.posargs, env={"FXPRUNE_EXPORT": "1"})
