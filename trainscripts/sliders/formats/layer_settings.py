"""The settings of `network` that choose exactly the layers of a file, each with its rank."""

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sliders.adaptors import ALGORITHMS
from sliders.adaptors.base import ALPHA
from sliders.config.schema import LayerPattern, Network
from sliders.formats.spelling import Module
from sliders.models.layers import architecture_of, reachable_layers, select_layers
from sliders.system.errors import InputError

MOST = 4096  # of network.rank


def settings_for(path: Path, denoiser: nn.Module, modules: dict[str, Module], algo: str) -> Network:
    """{path of a layer: parts} → settings: a type and method for as many layers as possible, patterns for the rest.

    Raises InputError, naming `path`, if ranks are impossible. Whether sizes are the model's is for `check_fit`.
    """
    ranks = {name: ALGORITHMS[algo].settings_of([parts]).get("rank") for name, parts in modules.items()}
    if bad := [(rank, name) for name, rank in ranks.items() if rank is not None and not 1 <= rank <= MOST]:
        rank, name = bad[0]
        raise InputError(f"{path}: {name} has rank {rank}, and 1 to {MOST} can be used: get an undamaged file.")
    network, usual = _most_common(denoiser, modules, Network(algo=algo), ranks)
    # of the layers that have the network's rank, so that others, which keep the gain, mostly have theirs as well
    alphas = Counter(modules[name][ALPHA].item() for name in usual if ALPHA in modules[name])
    known = architecture_of(denoiser)
    methods = {(t, m): select_layers(denoiser, t, m).keys() for t in known.adapted for m in known.methods}
    # most layers, but first of all none that would have to be excluded: a UNet's methods include one that has none
    kind, method = max(methods, key=lambda choice: (-len(methods[choice] - modules.keys()), len(methods[choice])))
    chosen, reachable = methods[kind, method] & modules.keys(), list(reachable_layers(denoiser))
    exclude = _covering(
        [name for name in reachable if name in methods[kind, method] - chosen], {*reachable} - modules.keys(), reachable
    )
    more = [name for name in reachable if name in usual - chosen]
    include = [LayerPattern(pattern=p) for p in _covering(more, usual, reachable)]
    unusual = [name for name in reachable if name in modules.keys() - usual]
    for rank in dict.fromkeys(ranks[name] for name in unusual):
        same = [name for name in unusual if ranks[name] == rank]
        include += [LayerPattern(pattern=p, rank=rank) for p in _covering(same, set(same), reachable)]
    chosen_by = {"type": kind, "training_method": method, "include": tuple(include), "exclude": tuple(exclude)}
    alpha = max(alphas, key=lambda value: (alphas[value], value), default=1.0)
    return network.model_copy(update={**chosen_by, "alpha": alpha})


def _most_common(
    denoiser: nn.Module, modules: dict[str, Module], network: Network, ranks: dict[str, int | None]
) -> tuple[Network, set[str]]:
    """`network` with the rank, and factor, that gives the most layers their sizes; and the names of these layers."""
    found = ALGORITHMS[network.algo].settings_of(list(modules.values()))
    choices = [network.model_copy(update=found)]
    common = Counter(ranks.values()).most_common(1)[0][0]
    if common is not None and common != found["rank"]:
        choices.append(network.model_copy(update={**found, "rank": common}))
    fits = [_fitting(denoiser, modules, choice) for choice in choices]
    return max(zip(choices, fits, strict=True), key=lambda pair: len(pair[1]))


def _fitting(denoiser: nn.Module, modules: dict[str, Module], network: Network) -> set[str]:
    """The layers whose weights have the sizes that an adaptor of these settings has."""
    algorithm = ALGORITHMS[network.algo]
    if network.factor is not None:
        algorithm = partial(algorithm, factor=network.factor)
    with torch.device("meta"):
        adaptors = {name: algorithm(denoiser.get_submodule(name), network.rank, network.alpha) for name in modules}
    return {name for name, a in adaptors.items() if a.accepts({k: t.shape for k, t in modules[name].items()})}


def _covering(names: Iterable[str], allowed: set[str], reachable: Iterable[str]) -> list[str]:
    """Few patterns that match all `names` and, of the `reachable` layers, none but `allowed` ones."""
    patterns, left, matched = [], list(names), {}
    while left:
        for pattern in _patterns(left[0]):
            if pattern not in matched:
                matched[pattern] = {name for name in reachable if fnmatchcase(name, pattern)}
            if matched[pattern] <= allowed:
                break
        patterns.append(pattern)
        left = [name for name in left if name not in matched[pattern]]
    return patterns


def _patterns(name: str) -> Iterable[str]:
    """`*.net.2`, `*.ff.net.2`, … and at last the whole name, which matches only itself."""
    parts = name.split(".")
    yield from (".".join(["*", *parts[i:]]) for i in range(len(parts) - 1, 0, -1) if not parts[i].isdigit())
    yield name
