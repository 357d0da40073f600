"""Builds the native files with CMake; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds the CMake project straight into the package folder."""

    def run(self) -> None:
        package = ROOT / "gancomp" if self.editable_mode else Path(self.build_lib).resolve() / "gancomp"
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        cmake = self._find_cmake()
        import pybind11

        arguments = [
            f"-DGANCOMP_OUTPUT={package}",
            "-DGANCOMP_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            *[f"-D{name}={os.environ[name]}" for name in ("GANCOMP_CUDA", "GANCOMP_CUDA_ARCHS") if os.environ.get(name)],
        ]
        # A folder configured by another generator or another isolated environment cannot be reused.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        generator = ["-G", "Ninja"] if self._has_ninja() else []
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.run([cmake, str(ROOT), *generator, *arguments], cwd=build, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", jobs], check=True)

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / "gancomp"
        return [str(path) for path in sorted(folder.rglob("*.so"))]

    def get_source_files(self) -> list[str]:
        return []

    @staticmethod
    def _find_cmake() -> str:
        try:
            import cmake

            return os.path.join(cmake.CMAKE_BIN_DIR, "cmake")
        except ImportError:
            found = shutil.which("cmake")
            if found is None:
                raise SystemExit("building gancomp needs CMake: pip install cmake") from None
            return found

    @staticmethod
    def _has_ninja() -> bool:
        try:
            import ninja

            os.environ["PATH"] = ninja.BIN_DIR + os.pathsep + os.environ.get("PATH", "")
            return True
        except ImportError:
            return shutil.which("ninja") is not None


setup(ext_modules=[Extension("gancomp._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
