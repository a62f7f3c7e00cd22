"""The wheel and the sdist hold every source file, and the wheel alone can say what it is."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.in_turns("wheel"),
    pytest.mark.timeout(900),  # a cold release build on a busy machine takes minutes
]

ROOT = Path(__file__).parents[2]
ROOMS = ("node", "protocols", "models")
PACKED = {".py", ".json", ".pyi", ".typed"}


def source_files() -> set[str]:
    """Every file of the package as the wheel names it."""
    package = ROOT / "native" / "python" / "swarmnode"
    found = {f"swarmnode/{path.name}" for path in package.iterdir() if path.is_file() and path.suffix != ".so"}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and path.suffix in PACKED:
                found.add(f"swarmnode/{room}/{path.relative_to(ROOT / room).as_posix()}")
    return found


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([str(ROOT / "scripts" / "wheel"), str(out)], check=True)
    return out


@pytest.mark.slow
def test_the_wheel_holds_every_source_file(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = source_files()
    assert {"swarmnode/errors.py", "swarmnode/py.typed", "swarmnode/node/net/network.py"} <= files
    assert files <= names
    assert any(name.startswith("swarmnode/_native") and name.endswith((".so", ".pyd")) for name in names)
    assert not any(name.startswith(("tests/", "swarmnode/tests")) or "__pycache__" in name for name in names)
    assert "-abi3-" in wheel.name


@pytest.mark.slow
def test_the_sdist_holds_every_source_file(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    missing = {name for name in source_files() if not any(known.endswith(name) for known in names)}
    assert not missing
    assert {"Cargo.lock", "native/src/lib.rs", "native/src/checksum.rs"} <= names


@pytest.mark.slow
def test_the_wheel_alone_imports_and_helps(dist: Path, tmp_path: Path) -> None:
    """Unpacked by itself on a bare interpreter: no dependency is needed to import it or to read its help."""
    (wheel,) = dist.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from swarmnode.node.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout


ROUND_TRIP = """
import torch
from swarmnode import _native
from swarmnode.node.tensors import tensor_from_bytes, tensor_to_bytes
from swarmnode.protocols.tensors import CODEC_H8, CODEC_LOSSLESS
hidden = torch.randn(1, 4, 576, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
header, body = tensor_to_bytes(hidden, "bfloat16", CODEC_LOSSLESS)
assert header.codec == CODEC_LOSSLESS and torch.equal(tensor_from_bytes(header, body), hidden)
header, body = tensor_to_bytes(hidden, "bfloat16", CODEC_H8)
assert header.codec == CODEC_H8 and torch.allclose(tensor_from_bytes(header, body), hidden, atol=0.1)
print(_native.__file__)
"""


@pytest.mark.slow
def test_the_wheel_installs_and_works(dist: Path, tmp_path: Path) -> None:
    """In a fresh environment with all it depends on, as locked: its tags fit, its command runs, its extension codes."""
    (wheel,) = dist.glob("*.whl")
    tags = wheel.stem.split("-")[2:]
    assert tags[1] == "abi3"
    assert platform.machine().lower() in tags[2]
    home = tmp_path / "venv"
    uv = shutil.which("uv") or str(ROOT / ".tools" / "bin" / "uv")  # as scripts/setup has it
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(home)], check=True, timeout=60)
    (python,) = [*home.glob("bin/python"), *home.glob("Scripts/python.exe")]
    install = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--python",
        str(python),
        "-c",
        str(ROOT / "requirements.lock"),
        str(wheel),
    ]
    subprocess.run(install, check=True, timeout=600)
    command = [str(python.with_name("swarmnode")), "--help"]
    helped = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert helped.returncode == 0, helped.stderr
    assert "serve" in helped.stdout
    coded = subprocess.run(
        [str(python), "-I", "-c", ROUND_TRIP], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert coded.returncode == 0, coded.stderr
    assert Path(coded.stdout.strip()).is_relative_to(home)
