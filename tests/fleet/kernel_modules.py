"""gpio-sim for the emulated machine's kernel, which Debian 12 builds without it.

It is built out of tree from Debian's own source package of the same version, against the headers of the very kernel in
the test beds' root, and cached. Two things differ from a build within the kernel: the simulated interrupts
(kernel/irq/irq_sim.c) are linked in, because this kernel has none to offer, and raise an interrupt through
generic_handle_irq_safe, because irq_to_desc is not exported to modules.

Nothing is installed on this machine: the packages are unpacked beside the result. The chip itself is made in the guest
through configfs, with any label and number of lines (vm.py).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.fleet import image

# In the source package; gpio-sim.c includes gpiolib.h.
_SOURCES = ("drivers/gpio/gpio-sim.c", "drivers/gpio/gpiolib.h", "kernel/irq/irq_sim.c")
_NOT_EXPORTED = "handle_simple_irq(irq_to_desc(irqnum))"
_EXPORTED = "generic_handle_irq_safe(irqnum)"
# A module cannot have an object of its own name among its parts.
_KBUILD = "obj-m := gpio-sim.o\ngpio-sim-y := chip.o irq_sim.o\n"


def release(root: Path) -> str:
    """The kernel's release as `uname -r` gives it, such as 6.1.0-56-amd64."""
    return next(path.name for path in sorted((root / "lib" / "modules").iterdir()))


@image.one_at_a_time
def gpio_sim(root: Path) -> Path:
    """The module file for the kernel of this root. Raises: RuntimeError that says which step failed."""
    kernel = release(root)
    version = _run(
        "dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", "--showformat=${Version}", f"linux-image-{kernel}"
    )
    target = image.CACHE / f"modules-{kernel}-{version}"
    module = target / "gpio-sim.ko"
    if module.exists():
        return module
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    build = partial / "build"
    build.mkdir(parents=True)
    tree = _headers(partial, kernel, version)
    _sources(partial, build, version)
    _run("make", "-C", str(tree), f"M={build}", "modules")
    shutil.copy2(build / "gpio-sim.ko", partial)
    for scratch in ("packages", "build", "headers"):  # 200 MB that nobody reads again
        shutil.rmtree(partial / scratch)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return module


def _headers(partial: Path, kernel: str, version: str) -> Path:
    """The unpacked tree that builds a module for `kernel`."""
    common = kernel.rsplit("-", 1)[0] + "-common"
    line = ".".join(kernel.split(".")[:2])
    packages = [
        _fetch(partial, name, version)
        for name in (f"linux-headers-{kernel}", f"linux-headers-{common}", f"linux-kbuild-{line}")
    ]
    unpacked = partial / "headers"
    for package in packages:
        _run("dpkg-deb", "--extract", str(package), str(unpacked))
    tree = unpacked / "usr" / "src" / f"linux-headers-{kernel}"
    # its Makefile names the common headers by where they are installed, which is not here
    makefile = tree / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{tree.parent}/"))
    return tree


def _sources(partial: Path, build: Path, version: str) -> None:
    """The module's sources and its Kbuild file, in `build`."""
    name = f"linux-source-{'.'.join(version.split('.')[:2])}"
    package = _fetch(partial, name, version)
    members = " ".join(f"{name}/{source}" for source in _SOURCES)
    # tar ends when it has all members, and the programs before it with a broken pipe: only its own status counts
    _run(
        "sh", "-c",
        f"dpkg-deb --fsys-tarfile {package} | tar -xO ./usr/src/{name}.tar.xz"
        f" | tar -xJ -C {build} --strip-components=1 --occurrence=1 {members}",
    )  # fmt: skip
    shutil.move(build / _SOURCES[0], build / "chip.c")
    shutil.move(build / _SOURCES[1], build / "gpiolib.h")
    interrupts = (build / _SOURCES[2]).read_text()
    if _NOT_EXPORTED not in interrupts:
        raise RuntimeError(f"{name} {version}: {_SOURCES[2]} no longer has {_NOT_EXPORTED}; look what replaced it")
    (build / "irq_sim.c").write_text(interrupts.replace(_NOT_EXPORTED, _EXPORTED))
    (build / "Kbuild").write_text(_KBUILD)


def _fetch(partial: Path, name: str, version: str) -> Path:
    """The package of this very version, downloaded as this machine's apt does; its lists may be missing or old."""
    folder = partial / "packages"
    folder.mkdir(exist_ok=True)
    download = ("apt-get", "download", "--quiet", f"{name}={version}")
    try:
        _run(*download, folder=folder)
    except RuntimeError:
        try:
            _run("apt-get", "update", "--quiet")
            _run(*download, folder=folder)
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}\nThe kernel's packages of version {version} cannot be had. When Debian has a newer kernel by "
                f"now, delete {image.CACHE}/{image.SUITE}-*, and the root is built anew with it."
            ) from None
    return next(folder.glob(f"{name}_*.deb"))


def _run(*command: str, folder: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
    return done.stdout
