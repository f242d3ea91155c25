"""ImageNet weights of an encoder: from a file, or through segmentation_models_pytorch."""

from __future__ import annotations

from torch import nn

from ablate.errors import InputError
from ablate.network.base import Network
from ablate.network.building import outline
from ablate.network.encoder import INPUTS, EncoderUNet, check_encoder_name, encoder_options
from ablate.network.hub import HUB_TIMEOUT_S, reason_of
from ablate.network.starting import match_file, put, told
from ablate.network.weights import read_file
from ablate.space import PAPER_SIZE, NetworkSpec


def load_imagenet(network: Network, weights: str | None = None) -> str:
    """Load ImageNet weights into the encoder, from `weights` or through segmentation_models_pytorch.

    The latter takes them from the local cache of huggingface_hub and downloads them where they are missing.

    Args:
        network: an `EncoderUNet`.
        weights: file with the encoder's weights; None for those of segmentation_models_pytorch.

    Returns:
        What was loaded and what was not, by name and count.

    Raises:
        InputError: the file cannot be read or does not fit; there are no such weights, or they cannot be downloaded.
    """
    if not isinstance(network, EncoderUNet):
        raise InputError(f"pretrain.method imagenet needs network.kind encoder; got '{network.spec.kind}'")
    if weights is not None:
        found = read_file(weights)
        matched = match_file(network, found, weights, field="weights", encoder_only=True)
        put(network, matched)
        return f"ImageNet: {told(matched, found, weights)}"
    import segmentation_models_pytorch.encoders as encoders

    name, options = network.encoder, encoder_options(network.encoder, network.image_size)
    sources = imagenet_files(name)
    try:
        loaded: nn.Module = encoders.get_encoder(
            name,
            in_channels=len(INPUTS[network.spec.input][0]),
            weights=True if name.startswith("tu-") else "imagenet",
            **options,
        )
    except Exception as error:  # of the network, the server, the disk: in every case there are no weights
        raise InputError(_no_imagenet(name, sources, f"{type(error).__name__}: {error}")) from error
    encoder: nn.Module = network.get_submodule("net.encoder")
    nn.Module.load_state_dict(encoder, loaded.state_dict())
    return f"ImageNet: all {len(loaded.state_dict())} tensors of the encoder {name} loaded from {sources[0][0]}"


def check_imagenet(network: NetworkSpec, weights: str | None = None, *, image_size: int = PAPER_SIZE) -> None:
    """Refuse, before anything is trained, ImageNet weights that `load_imagenet` could not load.

    Without `weights` they must be in the local cache or on a server that answers within `HUB_TIMEOUT_S`;
    nothing is downloaded.

    Raises:
        InputError: with what to do.
    """
    if network.kind != "encoder":
        raise InputError(f"pretrain.method imagenet needs network.kind encoder; got '{network.kind}'")
    check_encoder_name(network.encoder)
    if weights is not None:
        built, _ = outline(network, image_size)
        match_file(built, read_file(weights), weights, field="weights", encoder_only=True)
        return
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    sources = imagenet_files(network.encoder)
    for repository, revision, file in sources:
        if isinstance(try_to_load_from_cache(repository, file, revision=revision), str):
            continue
        try:
            # not hf_hub_download(dry_run=True): where no server answers, that one asks again for minutes
            get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=HUB_TIMEOUT_S)
        except Exception as error:  # no route, no name, refused, not found, offline mode
            raise InputError(_no_imagenet(network.encoder, sources, reason_of(error))) from error


def imagenet_files(encoder: str) -> list[tuple[str, str | None, str]]:
    """Return repository, revision and name of each file on the hub that `encoder`'s ImageNet weights consist of.

    Raises:
        InputError: there are no such weights; with what there is.
    """
    import segmentation_models_pytorch.encoders as encoders
    import timm

    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"), allow_unregistered=False)
        repository = config.hf_hub_id if config else None
        if repository:
            return [(str(repository), None, "model.safetensors")]
        choices: list[str] = []
    else:
        settings: dict[str, dict[str, str]] = encoders.encoders[encoder]["pretrained_settings"]
        if "imagenet" in settings:
            source = settings["imagenet"]
            return [(source["repo_id"], source["revision"], file) for file in ("config.json", "model.safetensors")]
        choices = list(settings)
    raise InputError(
        f"network.encoder {encoder} has no ImageNet weights in segmentation_models_pytorch "
        f"(it has {', '.join(choices) or 'none'}); give pretrain.weights: FILE or choose another encoder"
    )


def _no_imagenet(encoder: str, sources: list[tuple[str, str | None, str]], reason: str) -> str:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository = sources[0][0]
    return (
        f"pretrain.method imagenet: the ImageNet weights of {encoder} ({repository}) are neither in the cache "
        f"{constants.HF_HUB_CACHE} nor can they be downloaded ({reason}); give pretrain.weights: FILE with the "
        "encoder's weights, or on a machine with a network run "
        f"python -c \"import segmentation_models_pytorch as s; s.encoders.get_encoder('{encoder}', "
        f'weights={"True" if encoder.startswith("tu-") else repr("imagenet")})" and copy its cache folder '
        f"{repo_folder_name(repo_id=repository, repo_type='model')} into that cache (HF_HUB_CACHE names another)"
    )
