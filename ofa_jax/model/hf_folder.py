"""A folder of GPT-2 weights: found on disk or fetched from the hub, its config read, its tensors listed."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from ofa_jax import files
from ofa_jax.errors import ConfigError, WeightsError
from ofa_jax.model.gpt2 import GPT2Config

CONFIG, WEIGHTS, INDEX, MANIFEST = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "trunk.json",
)
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}

_REFUSED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "is_causal": (True, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "auto_map": (None,),
}
"""Config fields that would change the mathematics in a way that is not built here, with the values that do not."""


class Stored(NamedTuple):
    """A tensor as a safetensors header tells of it; ``dtype`` in the header's words (``F32``)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def resolve(source: str | Path, revision: str | None, patterns: list[str]) -> tuple[Path, str]:
    """The local folder of ``source`` and the name to keep as its origin; a hub id is downloaded, ``patterns`` of it alone.

    Raises:
        WeightsError: No such folder, a file, a revision with a folder, or a hub id that cannot be fetched.
    """
    folder, text = Path(os.path.expanduser(source)), str(source)
    if folder.is_dir():
        if revision is not None:
            raise WeightsError(
                f"revision {revision!r} is for hub ids, but this is a folder",
                where=text,
                fix="Leave the revision out",
            )
        return folder, text
    if folder.exists():
        raise WeightsError(
            "is a file", where=text, fix="Name the folder that holds config.json and model.safetensors"
        )
    if (
        isinstance(source, Path)
        or text.startswith((".", "~"))
        or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text)
    ):
        raise WeightsError(
            "there is no such folder",
            where=text,
            fix="Name a folder of GPT-2 weights, or a hub id such as gpt2",
        )

    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(
            snapshot_download(text, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
        )
    except Exception as error:  # the hub, its http client and its transfer tool each have their own families
        reason = next(iter(str(error).strip().splitlines()), "no reason given").rstrip(".")
        raise WeightsError(
            f"neither a folder of this name nor a model that can be fetched from the Hugging Face hub ({type(error).__name__}: {reason})",
            where=text,
            fix=f"Check the spelling, the network, HF_HUB_OFFLINE and, for a gated model, `hf auth login`; or run "
            f"`ofa-jax convert {text} --out FOLDER` on a machine with network, copy FOLDER here and name it; "
            f"or ask for random weights with `trunk.source: random`",
        ) from error
    return snapshot, f"{text}@{snapshot.name}"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """``trunk.json`` of a folder that :func:`ofa_jax.model.weights.save_trunk` wrote, or None.

    Raises:
        WeightsError: A field is missing.
        CheckpointError: It is unreadable, or newer than this version.
    """
    if not (folder / MANIFEST).exists():
        return None
    manifest = files.read_json(folder / MANIFEST, kind="trunk folder")
    absent = {"source", "sha256", "config_sha256"} - manifest.keys()
    if absent:
        raise WeightsError(
            f"has no {', '.join(sorted(absent))}", where=str(folder / MANIFEST), fix="Convert the trunk again"
        )
    return manifest


def check_digest(folder: Path, name: str, expected: str) -> None:
    """Raise WeightsError unless file ``name`` is in ``folder`` with the sha256 that ``trunk.json`` gives."""
    if not (folder / name).exists():
        raise WeightsError(
            f"there is no {name} here, though trunk.json tells of it",
            where=str(folder),
            fix="Copy the whole folder again",
        )
    found = files.sha256_file(folder / name)
    if found != expected:
        raise WeightsError(
            f"has sha256 {found}, but trunk.json says {expected}: it was damaged or changed",
            where=str(folder / name),
            fix="Copy the folder again, or run `ofa-jax convert` again",
        )


def folder_config(folder: Path, manifest: Mapping[str, Any] | None) -> GPT2Config:
    """Shapes and mathematics from ``config.json``; with a ``manifest`` its sha256 is checked and ``transformers`` not needed.

    Raises:
        WeightsError: It is missing, unreadable, changed, not GPT-2's, or has fields (named) that are not supported.
    """
    path = folder / CONFIG
    if manifest is not None:
        check_digest(folder, CONFIG, manifest["config_sha256"])
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        fix = "Name a folder of GPT-2 weights; where a folder hides a hub id, write the id with its owner (openai-community/gpt2)"
        raise WeightsError("there is no config.json here", where=str(folder), fix=fix) from None
    except ValueError as error:
        raise WeightsError(
            f"not readable as JSON ({error})", where=str(path), fix="Download it again"
        ) from None
    if not isinstance(content, dict) or content.get("model_type") != "gpt2":
        found = content.get("model_type") if isinstance(content, dict) else None
        raise WeightsError(
            f"model_type is {found!r}, not 'gpt2'", where=str(path), fix="Only GPT-2 trunks are supported"
        )
    for name, harmless in _REFUSED.items():
        if content.get(name) not in harmless:
            raise WeightsError(
                f"{name} is {content[name]!r}, which is not supported",
                where=str(path),
                fix="Choose a plain GPT-2",
            )
    if manifest is None:
        content = _with_defaults(content, path)
    try:
        if content["n_inner"] is not None and content["n_inner"] < 1:
            raise ConfigError(f"n_inner is {content['n_inner']}, but must be at least 1 or null")
        return GPT2Config(**{field.name: content[field.name] for field in fields(GPT2Config)})
    except KeyError as error:
        raise WeightsError(
            f"has no {error.args[0]}", where=str(path), fix="Convert the trunk again"
        ) from None
    except ConfigError as error:
        raise WeightsError(error.what, where=str(path), fix=error.fix) from None


def _with_defaults(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Our fields of a Hugging Face config, with its other spellings (``hidden_size``), types and defaults."""
    with _without_torch_notice():
        from transformers import GPT2Config as HuggingFaceConfig

    ours, other_names = {field.name for field in fields(GPT2Config)}, HuggingFaceConfig.attribute_map
    for other, name in other_names.items():
        if other in content and name in content and content[other] != content[name]:
            raise WeightsError(
                f"{other} is {content[other]!r}, but {name} is {content[name]!r}",
                where=str(path),
                fix="Remove one",
            )
    try:  # token ids and the like stay out: transformers checks them aloud, and the trunk has no tokens
        filled = HuggingFaceConfig.from_dict(
            {name: value for name, value in content.items() if name in ours | other_names.keys()}
        )
    except Exception as error:  # the class of its validation error has changed between versions
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"transformers does not accept it ({reason})", where=str(path), fix="Correct the field it names"
        ) from error
    return {name: getattr(filled, name) for name in ours}


@contextmanager
def _without_torch_notice() -> Iterator[None]:
    """Keep back the one line that transformers logs on import where PyTorch is absent, and nothing else."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("PyTorch was not found")

    logger = logging.getLogger("transformers")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file opened for NumPy; raises WeightsError where it is missing, truncated or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as tensors:
            yield tensors
    except FileNotFoundError:
        raise WeightsError(
            "there is no such file, though the index names it", where=str(path), fix="Download the shard"
        ) from None
    except (SafetensorError, OSError) as error:
        fix = (
            "Download it again; a file of some 130 bytes is a git-lfs pointer, which `git lfs pull` replaces"
        )
        raise WeightsError(f"not readable as safetensors ({error})", where=str(path), fix=fix) from None


def inventory(folder: Path, source: str) -> dict[str, Stored]:
    """Every stored tensor by name, from the headers alone: of ``model.safetensors``, else of the shards in its index.

    Raises:
        WeightsError: No safetensors here (a pickle is answered with the command that converts it), a damaged or missing
            shard, an index that disagrees with its shards.
    """
    if (folder / WEIGHTS).exists():
        return _header(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        raise _no_safetensors(folder, source)
    try:
        index = {
            name: str(shard) for name, shard in json.loads((folder / INDEX).read_text())["weight_map"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"not readable as an index of shards ({error!r})",
            where=str(folder / INDEX),
            fix="Download it again",
        ) from None
    stored: dict[str, Stored] = {}
    astray = []
    for shard in sorted(set(index.values())):
        if Path(shard).name != shard:
            raise WeightsError(
                f"shard {shard!r} is not a plain file name",
                where=str(folder / INDEX),
                fix="Download it again",
            )
        found = _header(folder / shard)
        astray += [f"{name} in {shard}" for name in found if index.get(name) != shard]
        stored |= found
    astray += [f"{name} not in {shard}" for name, shard in index.items() if name not in stored]
    if astray:
        raise WeightsError(
            f"index and shards disagree: {listing(astray)}",
            where=str(folder / INDEX),
            fix="Download all of them again",
        )
    return stored


def _header(path: Path) -> dict[str, Stored]:
    with open_tensors(path) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not a dict
        return {
            name: Stored(path, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
        }


def _no_safetensors(folder: Path, source: str) -> WeightsError:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    command = f"""python -c "from transformers import GPT2Model; GPT2Model.from_pretrained('{source}').save_pretrained('OUT')\""""
    if pickles:
        what = f"only pickled weights here ({listing(pickles)}); they can run code while being read, so they are refused"
        fix = f"Convert them on a machine you can spare, with transformers and torch: {command}; then name the folder OUT"
    else:
        what = f"neither {WEIGHTS} nor {INDEX} is here"
        fix = f"Name a folder with the weights; a model on the hub may not be downloaded yet, or have only pickles (then: {command})"
    return WeightsError(what, where=str(folder), fix=fix)


def listing(names: list[str], most: int = 12) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
