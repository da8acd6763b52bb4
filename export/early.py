"""Checks of a build that need no weights, so that they come before a download: called by `cli.checkpoints`."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pplex.export.build import check_gpu, check_target
from pplex.export.build_plan import BuildOptions, BuildPlan, plan_build
from pplex.export.calibration import DEFAULT_CALIBRATION, stored_calibration
from pplex.export.checkpoint import Checkpoint
from pplex.export.conversations import AUDIO_SUFFIXES
from pplex.export.hub import cache_folder
from pplex.export.layout import ADAPTER_FILE, NO_FILES
from pplex.export.lora import read_lora
from pplex.export.source import Found, adapter_advice
from pplex.export.staging import is_being_built, partial_folder
from pplex.measure.tables import readable
from pplex.runtime.config import CODEBOOKS, MOSHI
from pplex.runtime.config_file import CONFIG_FILE, LORA_NAME, ConfigFile
from pplex.runtime.errors import BuildError, CalibrationError, CheckpointError, OutputError
from pplex.runtime.files import files_below


def check_out(out: Path) -> None:
    """Raise BuildError or OutputError if the bundle `out` cannot be written. Needs neither the hub nor a checkpoint."""
    check_target(out)
    parent = _existing(out.resolve().parent)
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".pplex-"):
            pass
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written: {error.strerror or error} ({parent}). Choose another --out."
        ) from error
    if is_being_built(out):
        raise OutputError(f"{out} is being built by another process. Wait for it, or choose another folder.")


def check_before_download(found: Found, out: Path, options: BuildOptions) -> None:
    """Check the options and the disks before the weights of a repository are downloaded.

    Raises CalibrationError, CheckpointError, ConfigError, GpuError or BuildError, as `build` would after the download.
    """
    if not found.missing:
        return  # `build` checks the same, and the tensors too
    described = found.described
    _check_adapter(found, described, options)
    config = described.config.as_moshi() if described.model_type == MOSHI else described.config
    plan = plan_build(Checkpoint(config, CODEBOOKS, {}, NO_FILES), options)
    if options.gpu is not None:
        check_gpu(plan, options.gpu)
    _check_recordings(options)
    _check_disks(found.missing, out, plan)


def _check_adapter(found: Found, described: ConfigFile, options: BuildOptions) -> None:
    """Raise CheckpointError or ConfigError for an adapter that cannot be used, or is missing."""
    if options.lora is not None:
        read_lora(Path(options.lora), options.lora_scaling)
    elif described.lora:
        advice = adapter_advice(str(found.source.repo), described.names.get(LORA_NAME, ADAPTER_FILE))
        raise CheckpointError(
            f"{CONFIG_FILE} of {found.source.repo} says lora: true, so the weights need their adapter. Add {advice}"
        )


def _check_recordings(options: BuildOptions) -> None:
    given = options.calibration
    if given in (None, DEFAULT_CALIBRATION) or stored_calibration(given):
        return
    if not any(path.suffix.lower() in AUDIO_SUFFIXES for path in files_below(Path(given))):
        raise CalibrationError(
            f"Cannot calibrate: {given} does not exist, or holds no recording ({', '.join(AUDIO_SUFFIXES)}). Name a folder "
            "of speech, or leave --calibration out for synthetic speech."
        )


def _check_disks(missing: Mapping[str, int], out: Path, plan: BuildPlan) -> None:
    """Compare the bytes of the download and of the bundle with the free space of their disks, which may be one."""
    cache, target = _existing(cache_folder()), _existing(out.resolve().parent)
    download, written = sum(missing.values()), _partly_written(out)
    needs = {cache: (download, f"{readable(download)} for the download ({cache_folder()}, or another HF_HOME)")}
    bundle = plan.disk_nbytes, f"{readable(plan.disk_nbytes)} for the bundle ({out}, or another --out)"
    if os.stat(cache).st_dev == os.stat(target).st_dev:
        needs = {target: (download + bundle[0], f"{needs[cache][1]} and {bundle[1]}")}
    else:
        needs[target] = bundle
    for folder, (nbytes, words) in needs.items():
        free = shutil.disk_usage(folder).free + (written if folder == target else 0)
        if free < nbytes:
            raise BuildError(
                f"The build needs {readable(nbytes)} on one disk: {words}. It has {readable(free)} free.\n"
                "Free some space, use another disk, or choose a --precision of fewer bits. Nothing was downloaded."
            )


def _partly_written(out: Path) -> int:
    """Bytes of an interrupted build of `out`, which this build would continue or delete."""
    return sum(path.stat().st_size for path in files_below(partial_folder(out)))


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())
