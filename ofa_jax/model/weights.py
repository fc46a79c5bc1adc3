"""Hugging Face files -> trunk tree: one rule of names, every stored tensor used once or named as dropped.

A trunk comes from a folder or a hub id, from safetensors only: a pickle can run code while it is read.
Random weights are never a fallback; they come from :func:`random_trunk` alone.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ofa_jax import files
from ofa_jax.config.schema import PRETRAINED
from ofa_jax.errors import ConfigError, WeightsError, listed
from ofa_jax.files import FileRecord, Record, Sha256
from ofa_jax.model import frozen_init, trees
from ofa_jax.model.gpt2 import LEVELS, PRESETS, Forecaster, GPT2Config
from ofa_jax.tensors import open_tensors, read_tensor

CONFIG, WEIGHTS, MANIFEST = "config.json", "model.safetensors", "trunk.json"
_INDEX = "model.safetensors.index.json"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}

_UNUSED = re.compile(
    r"wte\.weight|h\.\d+\.attn\.(bias|masked_bias)"
    r"|(lm_head|score|classifier|qa_outputs|multiple_choice_head)\..+"
)
"""Token embedding, mask buffers of old files and heads of Hugging Face's classes: not part of the trunk."""

_INITIALIZER_RANGE = 0.02  # Hugging Face's default `initializer_range`

_Stored = dict[str, tuple[Path, tuple[int, ...]]]
"""File and shape of every stored tensor by name."""


@dataclass(frozen=True, eq=False)
class Trunk:
    """A checked trunk on the host: config, nested read-only float32 arrays and their origin.

    Parameters of a trunk that was pretrained on series include the layers around it.

    ``source`` is a folder, ``id@commit`` of the hub, or ``random``, and is kept by conversion; ``dropped``
    are the Hugging Face names of stored tensors that the trunk does not use.
    """

    config: GPT2Config
    params: dict[str, Any]
    source: str
    dropped: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Fingerprint over path, shape, dtype and bytes of all parameters, in path order."""
        return trees.fingerprint(sorted(trees.flatten(self.params).items()))


_PRETRAINED_FOLDER = Path(__file__).parent.parent / "trunks"
_HUB_ID = r"(?![.~])[\w.-]+(/[\w.-]+)?"


class _ForecasterRecord(Record):
    """``forecaster`` of ``config.json``: the layers that a trunk was pretrained with."""

    patch: int = Field(ge=1, le=2**10)
    context: int = Field(ge=1, le=2**20)
    horizon: int = Field(ge=1, le=2**20)
    version: Literal[2]


class _ConfigRecord(Record):
    """Hugging Face's ``config.json``: our fields with its defaults, and fields with one supported value."""

    model_type: Literal["gpt2"]
    add_cross_attention: Literal[False, None] = None
    is_encoder_decoder: Literal[False, None] = None
    is_causal: Literal[True, None] = None
    pruned_heads: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    quantization_config: None = None
    auto_map: None = None
    n_embd: int = Field(768, ge=1, le=2**16)
    n_layer: int = Field(12, ge=1, le=1000)
    n_head: int = Field(12, ge=1, le=2**16)
    n_positions: int = Field(1024, ge=1, le=2**20)
    n_inner: Annotated[int, Field(ge=1, le=2**18)] | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = Field(1e-5, gt=0, lt=1)
    embd_pdrop: float = Field(0.1, ge=0, lt=1)
    attn_pdrop: float = Field(0.1, ge=0, lt=1)
    resid_pdrop: float = Field(0.1, ge=0, lt=1)
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    forecaster: _ForecasterRecord | None = None


_OTHER_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Hugging Face's general names of GPT-2's own fields."""


class _IndexRecord(Record):
    """``model.safetensors.index.json``."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^[\w.-]+\.safetensors$")]]


class TrunkRecord(FileRecord):
    """``trunk.json`` of a converted folder: origin of the weights, and the sha256 of the two other files."""

    source: str
    sha256: Sha256
    config_sha256: Sha256


def trunk_tensors(config: GPT2Config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Hugging Face name -> (our path, shape), for every tensor of the trunk, in path order."""
    d = config.n_embd

    def dense(fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
        return {"kernel": (fan_in, fan_out), "bias": (fan_out,)}  # Hugging Face's Conv1D is [in, out] too

    norm = {"scale": (d,), "bias": (d,)}
    attention = {"c_attn": dense(d, 3 * d), "c_proj": dense(d, d)}
    mlp = {"c_fc": dense(d, config.mlp_width), "c_proj": dense(config.mlp_width, d)}
    block = {"ln_1": norm, "attn": attention, "ln_2": norm, "mlp": mlp}
    blocks = {str(i): block for i in range(config.n_layer)}
    tree: dict[str, Any] = {"wpe": {"embedding": (config.n_positions, d)}, "h": blocks, "ln_f": norm}
    if around := config.forecaster:
        tree["in_layer"] = dense(6 * around.patch, d)
        tree["median_layer"] = dense(d, around.patch)
        tree["spread_layer"] = dense(d, len(LEVELS) * around.patch)
    rows = {}
    for path, shape in trees.flatten(tree).items():
        rows[re.sub("(kernel|scale|embedding)$", "weight", path).replace("/", ".")] = path, shape
    return rows


def read_config(source: str | Path, *, revision: str | None = None, n_layer: int | None = None) -> GPT2Config:
    """Shapes and mathematics of a trunk, without its weights.

    ``source`` is a folder, a hub id, or the name of a published GPT-2 (``gpt2``, ``distilgpt2``, …; with or
    without its owner), which needs neither files nor network; a folder of that name comes first. ``revision``
    is a branch, tag or commit of a hub id. The first ``n_layer`` blocks are kept, by default all.

    Raises:
        WeightsError: No config found, one that is not GPT-2's, fields (named) that change the mathematics and
            are not supported, or fewer blocks than requested. ``reorder_and_upcast_attn`` is accepted:
            attention scores and softmax are always float32 here.
    """
    owner, _, name = str(source).rpartition("/")
    owners = ("", "distilbert" if name == "distilgpt2" else "openai-community")
    if isinstance(source, str) and owner in owners and name in PRESETS and not Path(source).is_dir():
        return _keep(PRESETS[name], n_layer, source)
    folder, _ = _resolve(source, revision, [CONFIG, MANIFEST])
    return _keep(_folder_config(folder)[0], n_layer, str(source))


def load_trunk(source: str | Path, *, n_layer: int | None = None, revision: str | None = None) -> Trunk:
    """Read and check GPT-2 weights from a folder or the hub.

    Reads ``model.safetensors``, else the shards of ``model.safetensors.index.json``, with or without the
    ``transformer.`` prefix, and converted folders, whose sha256 is checked. float16, bfloat16 and float64
    become float32.

    ``source`` is a folder or a hub id, ``revision`` a branch, tag or commit of the latter. The first
    ``n_layer`` blocks are kept, by default all.

    Raises:
        WeightsError: Nothing found, pickled weights only, damaged files, tensors that are missing, unexpected
            or misshapen (all of them named in one error) or not finite, or what :func:`read_config` refuses.
    """
    folder, origin = _resolve(source, revision, [CONFIG, MANIFEST, WEIGHTS, _INDEX, "model-*.safetensors"])
    stored_config, manifest = _folder_config(folder)
    config = _keep(stored_config, n_layer, str(source))
    if manifest is not None:
        _check_files(folder, {WEIGHTS: manifest.sha256})
        origin = origin if source in PRETRAINED else manifest.source
    stored = _list_tensors(folder, str(source))
    names, dropped = _match(stored, stored_config, config, folder)
    flat: dict[str, np.ndarray] = {}
    for file in sorted({stored[name][0] for name in names.values()}):
        with open_tensors(file, error=WeightsError) as tensors:
            for path, name in names.items():
                if stored[name][0] == file:
                    flat[path] = read_tensor(tensors, name, file, error=WeightsError)
                    flat[path].flags.writeable = False
    return Trunk(config, trees.unflatten(flat), origin, dropped)


def random_trunk(config: GPT2Config, seed: int) -> Trunk:
    """A trunk with Hugging Face's initial distribution, the same bits from ``seed`` on every machine.

    Kernels and positions ~ N(0, 0.02²), both ``c_proj`` kernels ~ N(0, 0.02² / (2 n_layer)), biases 0, layer
    norms 1 and 0; drawn by :func:`ofa_jax.model.frozen_init.normal` under ``gpt2/<path>``.
    """
    residual_std = _INITIALIZER_RANGE / math.sqrt(2 * config.n_layer)
    flat: dict[str, np.ndarray] = {}
    for path, shape in trunk_tensors(config).values():
        if path.endswith(("kernel", "embedding")):
            std = residual_std if path.endswith("c_proj/kernel") else _INITIALIZER_RANGE
            flat[path] = frozen_init.normal(seed, f"gpt2/{path}", shape, std)
        else:
            flat[path] = np.full(shape, path.endswith("scale"), np.float32)
        flat[path].flags.writeable = False
    return Trunk(config, trees.unflatten(flat), "random")


def _keep(config: GPT2Config, n_layer: int | None, where: str) -> GPT2Config:
    if n_layer is None:
        return config
    if not 1 <= n_layer <= config.n_layer:
        what = f"{n_layer} blocks were requested, but this trunk has {config.n_layer}"
        raise WeightsError(what, where=where, fix=f"Set trunk.n_layer between 1 and {config.n_layer}")
    return replace(config, n_layer=n_layer)


def hub_origin(origin: str) -> tuple[str, str] | None:
    """Id and revision of a trunk's origin on the hub; None of a folder, and of any other origin."""
    found = re.fullmatch(rf"({_HUB_ID})@([\w.-]+)", origin)
    return None if found is None or Path(origin).exists() else (found[1], found[3])


def _resolve(source: str | Path, revision: str | None, patterns: list[str]) -> tuple[Path, str]:
    """The local folder of ``source``, downloaded if it is a hub id, and its origin."""
    if source in PRETRAINED:
        return _PRETRAINED_FOLDER / str(source), str(source)
    folder, text = Path(os.path.expanduser(source)), str(source)
    there = files.is_there(folder, error=WeightsError)
    if folder.is_dir():
        if revision is not None:
            what = f"revision {revision!r} is for hub ids, but this is a folder"
            raise WeightsError(what, where=text, fix="Leave the revision out")
        return folder, text
    if there or isinstance(source, Path) or not re.fullmatch(_HUB_ID, text):
        what = "is a file" if there else "there is no such folder"
        fix = f"Name the folder that contains {CONFIG} and {WEIGHTS}, or a hub id such as gpt2"
        raise WeightsError(what, where=text, fix=fix)

    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": ["*/*"]}
    try:
        snapshot = Path(snapshot_download(text, revision=revision, **options))
    except Exception as error:  # the hub, its HTTP client and its transfer tool each have their own families
        reason = next(iter(str(error).strip().splitlines()), "no reason given").rstrip(".")
        cause = f"{type(error).__name__}: {reason}"
        what = f"neither a folder of this name nor a model that can be fetched from the hub ({cause})"
        fix = (
            "Check the spelling, the network, HF_HUB_OFFLINE and, for a gated model, `hf auth login`; or run "
            f"`ofa-jax convert {text} --out FOLDER` where there is network, copy FOLDER here and name it; "
            "or ask for random weights with `trunk.source: random`"
        )
        raise WeightsError(what, where=text, fix=fix) from error
    return snapshot, f"{text}@{snapshot.name}"


def _folder_config(folder: Path) -> tuple[GPT2Config, TrunkRecord | None]:
    """``config.json`` and, in a converted folder, ``trunk.json``, against which it is checked."""
    manifest, path = None, folder / CONFIG
    if files.is_there(folder / MANIFEST, error=WeightsError):
        manifest = files.read_record(folder / MANIFEST, TrunkRecord, kind="trunk", error=WeightsError)
        _check_files(folder, {CONFIG: manifest.config_sha256})
    elif not files.is_there(path, error=WeightsError):
        fix = "Name a folder of GPT-2 weights; where it hides a hub id, add the owner (openai-community/gpt2)"
        raise WeightsError(f"there is no {CONFIG} here", where=str(folder), fix=fix)
    content = files.read_json(path, kind="trunk", error=WeightsError)
    for other, name in _OTHER_NAMES.items():
        if other in content and content.setdefault(name, content[other]) != content[other]:
            what = f"{other} is {content[other]!r}, but {name} is {content[name]!r}"
            raise WeightsError(what, where=str(path), fix="Remove one")
    fix = "Choose a plain GPT-2; other trunks are not supported"
    record = files.parse_record(content, _ConfigRecord, where=str(path), error=WeightsError, fix=fix)
    try:
        fields = record.model_dump(include=set(GPT2Config.__dataclass_fields__))
        if fields["forecaster"] is not None:
            fields["forecaster"] = Forecaster(**fields["forecaster"])
        return GPT2Config(**fields), manifest
    except ConfigError as error:
        raise WeightsError(error.what, where=str(path), fix=error.fix) from None


def _check_files(folder: Path, digests: Mapping[str, str]) -> None:
    if damage := files.find_damage(folder, digests):
        fix = "Copy the folder again, or run `ofa-jax convert` again"
        raise WeightsError(damage, where=str(folder), fix=fix)


def _list_tensors(folder: Path, source: str) -> _Stored:
    """Every stored tensor, from the headers of ``model.safetensors`` or of the index's shards."""
    index = None
    if not files.is_there(folder / WEIGHTS, error=WeightsError):
        if not files.is_there(folder / _INDEX, error=WeightsError):
            raise _no_safetensors(folder, source)
        index = files.read_record(folder / _INDEX, _IndexRecord, kind="trunk", error=WeightsError).weight_map
    stored: _Stored = {}
    for name in [WEIGHTS] if index is None else sorted(set(index.values())):
        with open_tensors(folder / name, error=WeightsError) as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                stored[key] = folder / name, tuple(tensors.get_slice(key).get_shape())
    found = {name: file.name for name, (file, _) in stored.items()}
    if index is not None and found != index:
        what = (
            f"index and shards disagree on {listed(sorted(dict(found.items() ^ index.items())), 12, mark='')}"
        )
        raise WeightsError(what, where=str(folder / _INDEX), fix="Download all of them again")
    return stored


def _no_safetensors(folder: Path, source: str) -> WeightsError:
    what = f"neither {WEIGHTS} nor {_INDEX} is here"
    if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES):
        what += (
            f", only pickled weights ({listed(pickles, 12, mark='')}), which can run code while they are read"
        )
    call = f"from transformers import GPT2Model; GPT2Model.from_pretrained('{source}').save_pretrained('OUT')"
    fix = "Name a folder with safetensors; to convert pickles, run on a spare machine with transformers and "
    fix += f'torch: python -c "{call}"; then name OUT'
    return WeightsError(what, where=str(folder), fix=fix)


def _match(
    stored: _Stored, stored_config: GPT2Config, config: GPT2Config, folder: Path
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Path -> stored name for every parameter of ``config``, and the names that are dropped."""
    rows, all_rows = trunk_tensors(config), trunk_tensors(stored_config)
    prefix = "transformer." if any(name.startswith("transformer.") for name in stored) else ""
    names: dict[str, str] = {}
    dropped, unexpected, misshapen = [], [], []
    for full_name, (_, found) in stored.items():
        name, inside = full_name.removeprefix(prefix), full_name.startswith(prefix)
        if inside and name in rows:
            path, shape = rows[name]
            names[path] = full_name
            if found != shape:
                misshapen.append(f"{full_name} is {list(found)}, not {list(shape)}")
        elif _UNUSED.fullmatch(name) or (inside and name in all_rows):
            dropped.append(full_name)
        else:
            unexpected.append(full_name)
    missing = [prefix + name for name, (path, _) in rows.items() if path not in names]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(faults.values()):
        parts = [f"{len(them)} {kind}: {listed(them, 12, mark='')}" for kind, them in faults.items() if them]
        fix = "Check that config.json and the weights belong together and are plain GPT-2"
        raise WeightsError(
            f"the tensors are not those of config.json: {'; '.join(parts)}", where=str(folder), fix=fix
        )
    return names, tuple(sorted(dropped))
