"""Loading a multimodal language model, and its LoRA adapter if any, from a folder or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import math
import warnings
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open

from ..devices import best_device
from ..errors import ConfigError
from .hf import SMALLER, HfPolicy
from .settings import load_model_settings

__all__ = ["load_hf", "read_adapter", "split_name"]

_EXTRA = "install the extra: pip install 'label-studio-segagent[mllm]' (torchvision must match torch)"
_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_PACKED = ("U8", "I8", "I32", "F8_E4M3")
"""Types of quantised weights, which stay as they are."""


def load_hf(argument: str = "") -> HfPolicy:
    """Load `<model>` or `<model>+<LoRA adapter>`, each a folder or a name on the Hugging Face hub.

    Raises:
        ConfigError: There is no such model, it is not one that answers about images, something to run it is missing, or
            it does not fit into memory.
    """
    name, adapter = split_name(argument)
    settings = load_model_settings()
    trust = settings.trust_remote_code
    folders = [_folder(part, trust) for part in (name, adapter) if part]
    folder = folders[0]
    for needed, remedy in (("config.json", "it is no transformers model"), ("*.safetensors", "pickles are not loaded")):
        if not any(folder.glob(needed)):
            raise ConfigError(f"{folder} has no {needed}: {remedy}")
    device = best_device().type
    dtype = _precision(device)
    _check_memory(name, folder, device, dtype)
    local = {"trust_remote_code": trust, "local_files_only": True}
    processors: Any = transformers.AutoProcessor
    models: Any = transformers.AutoModelForImageTextToText
    try:
        processor = processors.from_pretrained(folder, **local)
        model, report = models.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **({} if device == "cpu" else {"device_map": device}),
            **local,
        )
        if report["missing_keys"]:
            raise ValueError(f"weights are missing: {', '.join(sorted(report['missing_keys'])[:3])}")
        if adapter:
            model = read_adapter(model, folders[1]).merge_and_unload()
    except ImportError as error:
        raise ConfigError(f"{name} needs a package that is not there ({_line(error)}): {_EXTRA}") from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ConfigError(f"{name} does not fit into the memory of {device}: {SMALLER}") from error
    except (ValueError, TypeError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        code = " (SEGAGENT_TRUST_REMOTE_CODE)" if "trust_remote_code" in str(error) else ""
        raise ConfigError(
            f"{argument} cannot be loaded as a model that answers about images: {_line(error)}{code}"
        ) from error
    return HfPolicy(
        model,
        processor,
        " ".join(map(_address, folders)),
        preset=settings.preset,
        pixels=settings.model_pixels,
        plain_image=settings.plain_image,
    )


def _folder(name: str, trust: bool) -> Path:
    """The folder of a model, downloaded when it is a name on the hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    patterns = [*_FILES, *(["*.py"] if trust else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*", "consolidated*"]))
    except (HFValidationError, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ConfigError(
            f"{name!r} is neither a folder nor a model that the Hugging Face hub gives out: {_line(error)}. Is the "
            "name right, the hub reachable, and for gated models HF_TOKEN set?"
        ) from error


def _precision(device: str) -> torch.dtype:
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16 if device == "mps" else torch.float32  # halves are many times slower on CPUs


def split_name(argument: str) -> tuple[str, str]:
    """Model and adapter of `<model>` or `<model>+<adapter>`; the adapter is empty where there is none.

    Raises:
        ConfigError: One of them is not given.
    """
    name, plus, adapter = (argument, "", "") if Path(argument).is_dir() else argument.partition("+")
    if not name or (plus and not adapter):
        raise ConfigError(
            f'"hf:{argument}" needs a model: "hf:Qwen/Qwen3-VL-4B-Instruct", or a folder; with "+<adapter>" behind it '
            "where there is an adapter"
        )
    return name, adapter


def read_adapter(model: Any, folder: Path, trainable: bool = False) -> Any:
    """A model with the LoRA adapter of a folder around it.

    Raises:
        ConfigError: There is no adapter, or it was trained for another model.
        ImportError: There is no peft.
    """
    from peft import PeftModel, get_peft_model_state_dict

    if not (folder / "adapter_model.safetensors").is_file():
        raise ConfigError(f"{folder} is no LoRA adapter: it has no adapter_model.safetensors (pickles are not loaded)")
    try:
        with warnings.catch_warnings():
            # Otherwise peft leaves what has no weights in the file as it was made: without effect, or at random.
            warnings.filterwarnings("error", ".*missing adapter keys", UserWarning)
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
            learned = {key for key in weights.keys() if "lora_" in key}  # noqa: SIM118
        unknown = sorted(learned - set(get_peft_model_state_dict(adapted, save_embedding_layers=False)))
        if unknown:
            raise ValueError(f"it has weights for {', '.join(unknown[:3])}, which the model has not")
        return adapted
    except (UserWarning, ValueError, TypeError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder} is no LoRA adapter of this model: {_line(error)}") from error


def _check_memory(name: str, folder: Path, device: str, dtype: torch.dtype) -> None:
    """Refuse a model that is larger than what is free: an operating system would kill this process instead.

    Raises:
        ConfigError: It is, or a weights file is damaged.
    """
    needed = 0
    try:
        for file in set(folder.glob("*.safetensors")) - set(folder.glob("consolidated*")):  # the same weights once more
            with safe_open(file, "pt") as weights:
                slices = [weights.get_slice(key) for key in weights.keys()]  # noqa: SIM118
                full = any(piece.get_dtype() in _PACKED for piece in slices)
                count = sum(math.prod(piece.get_shape()) for piece in slices)
                needed += file.stat().st_size if full else count * dtype.itemsize
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file} is damaged: {_line(error)}; download or copy it again") from error
    free = _free_memory(device)
    if free is not None and needed > free:
        raise ConfigError(
            f"{name} needs {needed / 2**30:.1f} GiB as {str(dtype).partition('.')[2]}, but {device} has "
            f"{free / 2**30:.1f} GiB free: {SMALLER}"
        )


def _free_memory(device: str) -> int | None:
    """Bytes free on a device, or None when unknown."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    here = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(here + list(filter(None, map(_group_limit, _GROUP_LIMITS))), default=None)


_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container says how much memory it may use, in both versions of Linux's control groups."""


def _group_limit(file: str) -> int | None:
    try:
        return int(Path(file).read_text("ascii"))
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _address(folder: Path) -> str:
    """Content address of a model: the commit of a download, else a hash of the files that matter."""
    if folder.parent.name == "snapshots":
        return folder.name
    digest = hashlib.sha256()
    for file in sorted(path for pattern in [*_FILES, "*.py"] for path in folder.glob(pattern)):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def _line(error: Exception) -> str:
    """The first sentence of an error's message."""
    return (" ".join(str(error).split()).partition(". ")[0].rstrip(".") or type(error).__name__)[:300]
