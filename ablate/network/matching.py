"""Tensors of a file given to the tensors of a network: by name behind prefixes, or by order and shape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ablate.errors import nearest

PREFIXES = (
    "module.",  # DistributedDataParallel
    "teacher.",  # DINO, iBOT
    "student.",
    "encoder_q.",  # MoCo and MoCo v2
    "base_encoder.",  # MoCo v3
    "backbone.",  # lightly, DINO
    "encoder.",  # segmentation_models_pytorch
    "model.",  # Lightning
    "net.",  # this package
)
"""What training code puts in front of the names of an encoder's tensors, in the order in which they are tried."""

HEADS = frozenset(
    (
        *("fc", "last_linear", "linear", "classifier", "head", "heads", "head_dist", "logits", "pre_logits"),
        *("projector", "projection", "projection_head", "prediction_head", "predictor", "mlp"),
        *("queue", "queue_ptr", "center", "mask_token"),
        *("conv_head", "bn2", "norm", "fc_norm"),  # between the last feature map and the classifier of timm's models
        *("decoder", "segmentation_head", "conv_out", "final_conv"),
    )
)
"""First names, without a leading `_`, of what may stand beside an encoder; in a file it is left aside."""

_DEPTH = 4  # prefixes that are stripped one after another
_LISTED = 4  # names given in a text before it says how many more there are
_COUNTER = "num_batches_tracked"  # older files lack it, and it matters only where a batch norm has no momentum

_FORMS: tuple[Callable[[str], str], ...] = (
    str,
    lambda name: name.replace("_", "."),  # timm's `stages.0` is `stages_0` in an encoder
    lambda name: name.replace("_", "").replace(".", ""),  # torchvision's old `norm.1` is `norm1`
)
"""Ways to write a name, each used only where it keeps all names apart."""


@dataclass(frozen=True)
class Target:
    """The tensors of a network that a file has to fill."""

    what: str  # as a text says it: `the encoder resnet18`
    tensors: Mapping[str, Tensor]
    beyond: Callable[[], Collection[str]] = tuple  # further names of the same architecture, that it does not use


@dataclass(frozen=True)
class Match:
    """What of a file goes where."""

    what: str
    tensors: Mapping[str, Tensor]  # by the network's names
    how: str  # `by name` or `by order and shape`
    prefix: str  # what was stripped from the file's names
    aside: tuple[str, ...]  # names in the file that are not used
    kept: tuple[str, ...]  # names of the network that keep their initial values
    channels: str  # how the first convolution was fitted to the number of channels; empty: it fits

    @property
    def words(self) -> str:
        """What was loaded and what was not, by name and count."""
        stripped = f", without the prefix {self.prefix}" if self.prefix else ""
        parts = [f"{len(self.tensors)} tensors of {self.what} loaded {self.how}{stripped}"]
        if self.channels:
            parts.append(self.channels)
        if self.aside:
            parts.append(f"{len(self.aside)} in the file left aside: {some(self.aside)}")
        if self.kept:
            parts.append(f"{len(self.kept)} not in the file keep their initial values: {some(self.kept)}")
        return "; ".join(parts)


def some(names: Collection[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(list(names)[:_LISTED]) + more


def match(tensors: Mapping[str, Tensor], targets: Sequence[Target], *, is_ordered: bool) -> Match:
    """Give the tensors of a file to the first of `targets` that they fill.

    Names are compared behind every chain of `PREFIXES` and in every way of `_FORMS`. Where they do not fill a target,
    the tensors behind a prefix may fill it in their order, if each has the shape and the last name (`weight`,
    `running_mean`, ...) of its counterpart. A tensor that is left aside must belong to a head (`HEADS`), to another
    branch (a momentum encoder), or follow the last one in order as a part of its own.

    Args:
        tensors: of the file, by name, in the file's order.
        targets: the one to prefer first; messages are about the last one.
        is_ordered: whether the file keeps the order of a network's tensors, which .safetensors does not.

    Raises:
        ValueError: no target is filled; the message names what is missing, unknown or of another shape.
    """
    branches = list(_branches(tensors))
    best: tuple[int, str, dict[str, str]] = (-1, "", {})
    for target in targets:
        for prefix, names in branches:
            found = _by_name(names, target.tensors)
            if target is targets[-1] and len(found) > best[0]:
                best = len(found), prefix, found
            if not _problems(tensors, found, names, target):
                return _result(tensors, found, target, prefix, "by name")
    target, (_, prefix, found) = targets[-1], best
    if is_ordered:
        for other, names in branches:
            if in_order := _by_order(tensors, names, target.tensors):
                return _result(tensors, in_order, target, other, "by order and shape, because their names differ")
    names = dict(branches)[prefix]
    problems = _problems(tensors, found, names, target)
    order = "" if is_ordered else "; a .safetensors file keeps no order by which other names could be matched"
    raise ValueError(f"{len(found)} of {len(target.tensors)} tensors found: {'; '.join(problems)}{order}")


def _branches(names: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each chain of prefixes with the names behind it, short to whole, the shortest chain first."""
    level: dict[str, dict[str, str]] = {"": {name: name for name in names}}
    for _ in range(_DEPTH + 1):
        yield from level.items()
        level = {
            chain + prefix: {
                short.removeprefix(prefix): name for short, name in behind.items() if short.startswith(prefix)
            }
            for chain, behind in level.items()
            for prefix in PREFIXES
            if any(short.startswith(prefix) for short in behind)
        }


def _by_name(names: Mapping[str, str], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the file's whole name for each of `own` that it has, in the first way of writing that finds the most."""
    best: dict[str, str] = {}
    aliases: list[dict[str, str]] = [{name: name for name in own}]
    for prefix in ("net.", "net.encoder.", "net.encoder.model."):  # the library's own names are without them
        if all(name.startswith(prefix) for name in own):
            aliases.append({name.removeprefix(prefix): name for name in own})
    for known in aliases:
        for form in _FORMS:
            theirs = {form(short): name for short, name in names.items()}
            ours = {form(short): name for short, name in known.items()}
            if len(theirs) < len(names) or len(ours) < len(known):
                continue
            found = {name: theirs[short] for short, name in ours.items() if short in theirs}
            if len(found) > len(best):
                best = found
    return best


def _by_order(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], own: Mapping[str, Tensor]
) -> dict[str, str] | None:
    """Return the file's whole name for each of `own`, in order; None where a shape or a last name differs."""
    ours = [name for name in own if not _is_counter(name)]
    kept = [short for short in names if not _is_counter(short)]
    first = first_convolution(own)
    for theirs in (kept, [short for short in kept if not _is_head(short)]):
        pairs = list(zip(ours, theirs, strict=False))
        parts = {_part(short) for _, short in pairs}
        is_whole = len(pairs) == len(ours) and not any(_part(short) in parts for short in theirs[len(pairs) :])
        if is_whole and all(  # what follows is a part of its own: a head under another name
            fits(own[mine], tensors[names[short]], is_first=mine == first)
            and mine.rpartition(".")[2] == short.rpartition(".")[2]
            for mine, short in pairs
        ):
            found = {mine: names[short] for mine, short in pairs}
            return found | dict(_counters(tensors, found, own))
    return None


def _part(name: str) -> str:
    """Return the first two names of a tensor: `layer4.1`, `features.8`."""
    return ".".join(name.split(".")[:2])


def _counters(
    tensors: Mapping[str, Tensor], found: Mapping[str, str], own: Mapping[str, Tensor]
) -> Iterator[tuple[str, str]]:
    """Yield the counter of each batch norm whose variance was found, where the file has it."""
    for mine in filter(_is_counter, own):
        variance = found.get(mine.removesuffix(_COUNTER) + "running_var", "")
        name = variance.removesuffix("running_var") + _COUNTER
        if variance and name in tensors:
            yield mine, name


def _problems(
    tensors: Mapping[str, Tensor], found: Mapping[str, str], names: Mapping[str, str], target: Target
) -> list[str]:
    """Return what keeps the found tensors from filling the target."""
    own = target.tensors
    problems = []
    missing = [name for name in own if name not in found and not _is_counter(name)]
    used = set(found.values())
    unknown = [
        short for short, name in names.items() if name not in used and not _is_head(short) and not _is_counter(short)
    ]
    if unknown:
        beyond = target.beyond()
        unknown = [short for short in unknown if short not in beyond]
    if missing:
        problems.append(f"missing {some(missing)}{nearest(missing[0], unknown)}")
    if unknown:
        problems.append(f"unknown {some(unknown)}")
    first = first_convolution(own)
    shapes = [
        f"{mine} {tuple(tensors[name].shape)} instead of {tuple(own[mine].shape)}"
        for mine, name in found.items()
        if not fits(own[mine], tensors[name], is_first=mine == first)
    ]
    if shapes:
        problems.append(f"other shapes: {some(shapes)}")
    return problems


def _result(tensors: Mapping[str, Tensor], found: Mapping[str, str], target: Target, prefix: str, how: str) -> Match:
    given = {mine: tensors[name] for mine, name in found.items()}
    own, channels = target.tensors, ""
    first = first_convolution(own)
    if first in given and given[first].shape != own[first].shape:
        given[first], channels = with_channels(given[first], own[first].shape[1])
    used = set(found.values())
    aside = tuple(name for name in tensors if name not in used)
    return Match(target.what, given, how, prefix, aside, tuple(name for name in own if name not in given), channels)


def _is_counter(name: str) -> bool:
    return name.endswith(_COUNTER)


def _is_head(name: str) -> bool:
    return name.removeprefix("_").partition(".")[0] in HEADS


def first_convolution(own: Mapping[str, Tensor]) -> str:
    """Return the name of the first convolution's kernel; nothing where there is none."""
    return next((name for name, tensor in own.items() if tensor.ndim == 4), "")


def fits(own: Tensor, given: Tensor, *, is_first: bool) -> bool:
    """Whether shapes are equal; those of a first convolution may have one input channel against several."""
    return own.shape == given.shape or (
        is_first
        and own.ndim == given.ndim == 4
        and own.shape[0] == given.shape[0]
        and own.shape[2:] == given.shape[2:]
        and 1 in (own.shape[1], given.shape[1])
    )


def with_channels(kernel: Tensor, channels: int) -> tuple[Tensor, str]:
    """Return a kernel (out, in, h, w) for another number of channels, equal on grey repeated in all of them."""
    if channels == 1:
        return kernel.sum(1, keepdim=True), f"the first convolution's {kernel.shape[1]} channels are summed to one"
    shared = (kernel / channels).expand(-1, channels, -1, -1).contiguous()
    return shared, f"the first convolution's one channel is shared by {channels}"
