"""What is known of a machine. `None` stands for what has not been found out, so that a page can be printed as it fills."""

from dataclasses import dataclass

from sliders.system.errors import either

# compute capabilities from which
AMPERE = (8, 0)  # bfloat16 is computed as it is
TURING = (7, 5)  # Triton's kernels run
CUDA_13_FROM = (7, 5)  # PyTorch's builds for CUDA 13 have kernels
DRIVERS = {13: 580, 12: 525}  # {CUDA's major version: oldest driver}, by NVIDIA's table of CUDA's compatibility


@dataclass(frozen=True)
class Card:
    """A GPU. Sizes in bytes."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]

    @property
    def architecture(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class Torch:
    """The installed PyTorch."""

    version: str  # with its build, such as 2.13.0+cu130
    cuda: str | None  # that it was built for; None: for none
    architectures: tuple[
        str, ...
    ]  # sm_80, compute_120 and so on, for which it has kernels; some say none where CUDA cannot start
    cards: int  # that it can use
    problem: str = ""  # its own words, if it could not be imported, or could not start CUDA

    @property
    def release(self) -> str:
        """The version without its build."""
        return self.version.partition("+")[0]

    def supports(self, card: Card) -> bool:
        """Whether there are kernels for a card: of its own architecture, an older one of the same generation, or code to translate."""
        major, minor = card.capability
        for name in self.architectures:
            kind, _, digits = name.partition("_")
            digits = digits.rstrip("af")  # code for one architecture, or one family, alone
            found = int(digits[:-1]), int(digits[-1])
            if kind == "sm" and found[0] == major and found[1] <= minor:
                return True
            if kind == "compute" and found <= card.capability:
                return True
        return False


@dataclass(frozen=True)
class Disk:
    """Room at a place. free in bytes."""

    what: str  # is written there
    path: str
    free: int
    needed: int  # that is usual


@dataclass(frozen=True)
class Trial:
    """What `--test` found out on one device."""

    device: str
    kernels: int | None  # that the GPU runs in a step; None on a CPU
    own: int | None  # of these, this project's
    captured: bool  # the step, as a CUDA graph
    seconds: float  # of a step
    apart: float  # largest relative difference of the losses from those of PyTorch's own operations
    problem: str = ""


@dataclass(frozen=True)
class Report:
    """system: Linux, Windows, WSL, container or macOS."""

    system: str
    python: str
    processors: int
    driver: str | None = None  # of NVIDIA; None: none answers
    cards: tuple[Card, ...] = ()
    hidden: str = ""  # CUDA_VISIBLE_DEVICES, if it is set
    disks: tuple[Disk, ...] = ()
    torch_version: str | None = None  # as it is installed; known before it is imported
    packages: tuple[tuple[str, str | None], ...] = ()  # (name, version, None if it is not installed)
    torch: Torch | None = None
    trial: Trial | None = None

    def installed(self, package: str) -> bool:
        return dict(self.packages).get(package) is not None

    @property
    def has_triton(self) -> bool:
        return self.installed("triton") or self.installed("triton-windows")

    @property
    def needs_driver(self) -> int | None:
        """The oldest driver, by its major version, that runs the installed PyTorch. None if that uses no CUDA."""
        if self.torch is None or self.torch.cuda is None:
            return None
        return DRIVERS.get(int(self.torch.cuda.partition(".")[0]))

    def lacks_newer_driver(self) -> bool:
        needed = self.needs_driver
        return needed is not None and self.driver is not None and int(self.driver.partition(".")[0]) < needed

    def unsupported(self) -> list[Card]:
        """Cards for which PyTorch has no kernels, where it says for which it has."""
        return [c for c in self.cards if self.torch and self.torch.architectures and not self.torch.supports(c)]


def names_of(cards: list[Card]) -> str:
    return either(dict.fromkeys(f"{c.name} ({c.architecture})" for c in cards))
