"""Bad input ends with status 2 and a message that gives value, place and remedy. Nothing is written."""

import importlib.util
import pickle
import struct
import zlib
from pathlib import Path

import pytest
import torch
from conftest import PROMPT_SET, disc, make_scale_folders, write_experiment, write_yaml
from experiments import Bomb, everything_in
from pydantic import ValidationError
from safetensors.torch import save_file
from sliders.config.schema import Save

CASES = []


def case(title: str, arrange, *said: str, marks=()):
    """`arrange(tmp_path)` prepares files and returns the command line. The error must contain all of `said`."""
    CASES.append(pytest.param(arrange, said, id=title, marks=marks))


def flags(*words: str):
    return lambda tmp_path: write_experiment(tmp_path, flags=words)


def config(**sections):
    return lambda tmp_path: write_experiment(tmp_path, **sections)


def file_text(name: str, text: str):
    def arrange(tmp_path):
        argv = write_experiment(tmp_path)
        write_yaml(tmp_path / name, text)
        return argv

    return arrange


def config_text(text: str):
    return file_text("config.yaml", text)


def prompts_text(text: str):
    return file_text("prompts.yaml", text)


def prompts(**keys):
    return lambda tmp_path: write_experiment(tmp_path, prompts=[{**PROMPT_SET, **keys}])


def data(spoil, *words: str):
    """`spoil(folder)` damages a good data set of four folders with one.png and two.png."""

    def arrange(tmp_path):
        spoil(make_scale_folders(tmp_path / "data"))
        return write_experiment(tmp_path, flags=words)

    return arrange


def model(name: str, make=None):
    """`make(path)` creates something that is not an SDXL model at `tmp_path/name`."""

    def arrange(tmp_path):
        if make is not None:
            make(tmp_path / name)
        return write_experiment(tmp_path, pretrained_model={"name_or_path": str(tmp_path / name)})

    return arrange


def not_installed(library: str):
    there = importlib.util.find_spec(library) is not None
    return pytest.mark.skipif(there, reason=f"{library} is installed")


# --- flags

ROOT_YAML = "trainscripts/imagesliders/data"
case("unknown flag", flags("--foldres", "a"), "--foldres", "did you mean --folders", "--help")
case("a path too long", flags("--folder_main", "x" * 300), "File name too long", "check the path")
case("not a hub id", flags("--model", "no body/x:y"), "name_or_path", "no body/x:y", "check it")
case("a number with an underscore", flags("--scales", "1_0, 2, 3, 4"), "--scales", "1_0", "write for example")
case("config_file left out", lambda tmp_path: write_experiment(tmp_path)[2:], "--config_file", "required", "--help")
case("folder_main left out", lambda tmp_path: write_experiment(tmp_path)[:2], "--folder_main", "required", "--help")
case("config_file is not there", lambda tmp_path: ["--config_file", "no.yaml", *write_experiment(tmp_path)[2:]],
     "--config_file", "no.yaml", "check the path")  # fmt: skip
case("config_file is a folder", lambda tmp_path: ["--config_file", ".", *write_experiment(tmp_path)[2:]],
     "--config_file", "directory", "check the path")  # fmt: skip
case("rank 0", flags("--rank", "0"), "--rank: 0 ", "greater than or equal to 1")
case("rank with a point", flags("--rank", "4.5"), "--rank: '4.5'", "not a whole number", "write one such as 4")
case("negative alpha", flags("--alpha", "-1"), "--alpha: -1.0 ", "greater than 0")
case("alpha nan", flags("--alpha", "nan"), "--alpha: nan ", "finite")
case("lr 0", flags("--lr", "0"), "--lr: 0.0 ", "greater than 0")
case("iterations 0", flags("--iterations", "0"), "--iterations: 0 ", "greater than or equal to 1")
case("negative seed", flags("--seed", "-1"), "--seed: -1 ", "greater than or equal to 0")
case("resolution flag", flags("--resolution", "500"), "--resolution: 500", "multiple of 32", "use 480")
case("empty scales", flags("--scales"), "--scales", "without a value", "0.67, 1, 1.3, 2.0")
case("blank scales", flags("--scales", " "), "--scales", "0.67, 1, 1.3, 2.0")
case("a word among the scales", flags("--scales", "1, two, 3, 4"), "--scales", "'two'", "finite number", "write")
case("an infinite scale", flags("--scales", "1, 2, 3, inf"), "--scales", "'inf'", "finite number", "write")
case("more scales than folders", flags("--folders", "low, high", "--scales", "1, 2, 3"),
     "--folders", "2 (low, high)", "--scales", "3 (1, 2, 3)", "one scale per folder")  # fmt: skip
case(
    "one folder twice",
    flags("--folders", "low, low, high", "--scales", "1, 2, 3"),
    "--folders: low",
    "twice",
    "a scale of its own",
)
case(
    "one scale twice",
    flags("--folders", "low, high", "--scales", "1, 1.0"),
    "--scales: 1.0",
    "twice",
    "a scale of its own",
)
case("one folder only", flags("--folders", "low", "--scales", "1"), "--folders: low", "two or more")
case("stylecheck downwards", flags("--stylecheck", "3-1"), "--stylecheck", "'3-1'", "0-3")
case("stylecheck folder missing", flags("--stylecheck", "0-2"), "--folder_main", "data0 ", "check the path")
case("stylecheck in this very folder", lambda tmp_path: write_experiment(tmp_path, ["--stylecheck", "7-8"], data=Path()),
     "--folder_main: 7 ", "check the path")  # fmt: skip
case("device gpu", flags("--device", "gpu"), "--device", "'gpu'", "CUDA index", "--device 0")
case("colon in the name", flags("--name", "a:b"), "--name", "'a:b'", ":", "leave them out")
case("slash in the name", flags("--name", "a/b"), "--name", "'a/b'", "/", "leave them out")
case("name ..", flags("--name", ".."), "--name", "'..'", "start or end with")
case("name too long", flags("--name", "n" * 200), "--name", "200 bytes", "120")
case("unknown training method", flags("--training_method", "noxatn"), "--training_method", "'noxatn'", "noxattn")

# --- the config

case("unknown key", config(network={"rnak": 4}), "config.yaml", "network.rnak", "did you mean 'rank'")
case("unknown section", config(trian={"lr": 1.0}), "config.yaml", "trian", "did you mean 'train'")
case("key in the wrong section", config(train={"rank": 4}), "config.yaml", "train.rank", "did you mean network.rank")
case(
    "wrong type",
    config(train={"iterations": "many"}),
    "config.yaml",
    "train.iterations: 'many'",
    "not a number",
    "for example 500",
)
case(
    "true for a number",
    config(network={"rank": True}),
    "config.yaml",
    "network.rank: true",
    "not a number",
    "for example 4",
)
case("a list for a section", config_text("prompts_file: prompts.yaml\npretrained_model: {name_or_path: tiny}\ntrain: [1]"),
     "config.yaml: train: a list", "not a section with keys")  # fmt: skip
case(
    "a key twice",
    config_text("prompts_file: p.yaml\ntrain: {lr: 1, iterations: 3, lr: 2}\n"),
    "config.yaml",
    "line 2",
    "lr appears twice",
)
BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
case("billions of merged keys", config_text(BOMB), "config.yaml", "line 8", "more than 1000 keys", "correct that line")
case("prompts_file is not there", config(prompts_file="no.yaml"), "prompts_file", "no.yaml", "check the path")
case("prompts_file that cannot be a path", config(prompts_file="a\0b"), "prompts_file", r"a\x00b", "without them")
case("YAML syntax", config_text("train:\n  lr: [1\nsave: {}\n"), "config.yaml", "line 3", "correct that line")
case("a tab in the YAML", config_text("train:\n\tlr: 1\n"), "config.yaml", "line 2", "spaces, not tabs")
case("a Windows path in double quotes", config_text('prompts_file: "C:\\Users\\me"\n'), "config.yaml", "line 1",
     "remove the double quotes")  # fmt: skip
case("a Windows path whose backslash becomes a newline", config_text('pretrained_model:\n  name_or_path: "D:\\new.ckpt"\n'),
     "name_or_path", r"'D:\new.ckpt'", "without them")  # fmt: skip
case("a Windows path whose backslash becomes a line separator", config_text('save:\n  path: "D:\\Loras"\n'), "save.path",
     r"'D:\u2028oras'", "without them")  # fmt: skip
case("a Windows path whose backslash becomes a control character", config_text('save:\n  path: "D:\\New"\n'), "save.path",
     r"'D:\x85ew'", "without them")  # fmt: skip
case("the same in save.path", config_text('save:\n  path: "out\\robes"\n'), "save.path", r"'out\robes'", "without them")
case("YAML that is a list", config_text("- a\n- b\n"), "config.yaml", "mapping", f"{ROOT_YAML}/config-xl.yaml")
case("YAML that is not UTF-8", lambda tmp_path: [write_experiment(tmp_path), (tmp_path / "config.yaml").write_bytes(b"#\xe9")][0],
     "config.yaml", "UTF-8")  # fmt: skip
case("an empty config", config_text(""), "config.yaml", "mapping", f"{ROOT_YAML}/config-xl.yaml")
case("Stable Diffusion 2", config(pretrained_model={"v2": True}), "pretrained_model.v2", "SDXL", "remove the key")
case("float16 training", config(train={"precision": "float16"}), "train.precision", "float16", "use bfloat16")
case("LyCORIS beside another algorithm", config(other={"lycorisize": True}, network={"algo": "loha"}), "other.lycorisize",
     "glora", "loha", "remove one")  # fmt: skip
case("unknown algorithm", config(network={"algo": "lorax"}), "network.algo: 'lorax'", "lora, loha")
case("DoRA", config(network={"algo": "DoRA"}), "network.algo: dora", "not the base model", "Use lora")
case("BOFT", config(network={"algo": "boft"}), "network.algo: boft", "not linear", "Use lora")
case("Diag-OFT", config(network={"algo": "diag-oft"}), "network.algo: diag-oft", "twice", "Use lora")
case("IA³", config(network={"algo": "ia3"}), "network.algo: ia3", "ComfyUI", "Use lora")
case("a factor without LoKr", config(network={"factor": 8}), "network", "algo lokr", "remove it")
case("factor 1", config(network={"algo": "lokr", "factor": 1}), "network.factor: 1", "or equal to 2")
case("a pattern that matches nothing", config(network={"include": ["*ff.nett*"]}), "network.include: '*ff.nett*'", "none of",
     "did you mean *ff.net*")  # fmt: skip
case("a pattern that lacks its stars", config(network={"include": ["ff.net"]}), "network.include: 'ff.net'", "*ff.net*")
case(
    "a pattern for a layer that web UIs do not know",
    config(network={"include": ["conv_in"]}),
    "network.include: 'conv_in'",
)
case(
    "a pattern that excludes nothing", config(network={"exclude": ["*attn2*"]}), "network.exclude: '*attn2*'", "none of"
)
case(
    "patterns that exclude everything",
    config(network={"exclude": ["*"]}),
    "network",
    "adapts no layers",
    "exclude fewer",
)
case(
    "a rank of 0 for a pattern",
    config(network={"include": [{"pattern": "*ff*", "rank": 0}]}),
    "network.include.0.rank: 0",
)
case("an unknown key beside a pattern", config(network={"include": [{"pattern": "*ff*", "rnk": 2}]}), "network.include.0.rnk",
     "did you mean 'rank'")  # fmt: skip
case("unknown optimizer", config(train={"optimizer": "sgdd"}), "train.optimizer", "'sgdd'", "adamw", "prodigy")
case("optimizer that is not a string", config(train={"optimizer": 8}), "train.optimizer: 8", "'adamw8bit'")
case("unknown schedule", config(train={"lr_scheduler": "cosin"}), "train.lr_scheduler", "'cosin'", "cosine", "linear")
case("code as optimizer argument", config(train={"optimizer_args": "lr=__import__('pathlib').Path('ran').touch()"}),
     "train.optimizer_args", "__import__", "write for example weight_decay=0.01")  # fmt: skip
case("argument that the optimizer does not have", config(train={"optimizer_args": "momentum=0.9"}),
     "train.optimizer_args", "adamw", "momentum", "correct or remove")  # fmt: skip
case("argument out of range", config(train={"optimizer_args": "betas=(2,3)"}),
     "train.optimizer_args", "adamw", "beta", "correct or remove")  # fmt: skip
case("arguments that exclude each other", config(train={"optimizer_args": "fused=True foreach=True"}),
     "train.optimizer_args", "adamw", "fused", "correct or remove")  # fmt: skip
case("argument that cannot be evaluated", config(train={"optimizer_args": "betas={[]:1}"}),
     "train.optimizer_args", "betas={[]:1}", "write for example")  # fmt: skip
case("argument without a value", config(train={"optimizer_args": "amsgrad"}),
     "train.optimizer_args", "'amsgrad'", "write for example")  # fmt: skip
case(
    "scales_per_step beyond the folders",
    config(train={"scales_per_step": 5}),
    "train.scales_per_step: 5",
    "more than 2",
)
case("max_denoising_steps 1", config(train={"max_denoising_steps": 1}), "train.max_denoising_steps: 1", "or equal to 2")
case("no layer to adapt", config(network={"type": "lierla", "training_method": "noxattn-hspace-last"}),
     "lierla", "noxattn-hspace-last", "use c3lier")  # fmt: skip
case("wandb is not installed", config(logging={"use_wandb": True}), "logging.use_wandb", "--extra wandb",
     marks=not_installed("wandb"))  # fmt: skip
case("xformers is not installed", config(other={"attention": "xformers"}), "other.attention: xformers", "not installed",
     "use auto", marks=not_installed("xformers"))  # fmt: skip
case("flash-attn is not installed", config(other={"attention": "flash-attn"}), "other.attention: flash-attn",
     "--extra flash", marks=not_installed("flash_attn"))  # fmt: skip
case("a GPU's attention on a CPU", config(other={"attention": "cudnn"}), "other.attention: cudnn", "on cpu", "use auto")
case("unknown attention", config(other={"attention": "fast"}), "other.attention", "fast", "sdpa")
case("unknown torch_compile", config(other={"torch_compile": "some"}), "other.torch_compile", "some", "regional")
case("nf4 on a CPU", config(pretrained_model={"quantize": "nf4"}), "pretrained_model.quantize: nf4", "use int8")
case("unknown quantization", config(pretrained_model={"quantize": "int3"}), "pretrained_model.quantize", "int3", "nf4")
case("log_every 0", config(logging={"log_every": 0}), "logging.log_every: 0")

# --- the prompts

case("prompts that are not a list", prompts_text("target: a"), "prompts.yaml", "list", f"{ROOT_YAML}/prompts-xl.yaml")
case("a prompt set that is a word", prompts_text("- robe"), "prompts.yaml, prompt set 1", "- target:")
case("target left out", prompts_text("- {target: a}\n- {positive: b}"), "prompt set 2: target", "missing", "add it")
case("action erase", prompts(action="erase"), "prompt set 1: action", "'erase'", "use enhance")
case("a placeholder", prompts(positive="{invariant}, red"), "positive", "'{invariant}, red'", "replace it")
case("resolution 500", prompts(resolution=500), "prompts.yaml", "resolution: 500", "multiple of 32", "use 480")
case("resolution 32", prompts(resolution=32), "prompts.yaml", "resolution: 32", "or equal to 64")
case("batch_size 0", prompts(batch_size=0), "prompts.yaml", "batch_size: 0", "or equal to 1")
case("an unknown prompt key", prompts(positve="a"), "prompt set 1: positve", "did you mean 'positive'")

# --- the images


def remove(folder: Path):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def empty(folder: Path):
    remove(folder)
    folder.mkdir()


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:200])


def write_bomb(path: Path):
    """Writes a PNG of about a hundred bytes whose header says 60000 × 60000 px."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


case("no data set", data(lambda d: d.rename(d.with_name("elsewhere")), "--folder_main", "nowhere"),
     "--folder_main", "nowhere", "check the path")  # fmt: skip
case("folder missing", data(lambda d: remove(d / "low")),
     "--folders", "'low'", "which holds high, veryhigh, verylow", "check its name")  # fmt: skip
case("empty folder", data(lambda d: empty(d / "low")), "'low'", "no images", "put the images of this scale there")
case("folder without an image", data(lambda d: [empty(d / "low"), (d / "low" / "notes.txt").write_text("hello")]),
     "'low'", "no images", "notes.txt", "put the images of this scale there")  # fmt: skip
case("one folder under two names", data(lambda d: None, "--folders", "low, ../data/low", "--scales", "1, 2"),
     "'low'", "'../data/low'", "the same folder", "give each scale its own")  # fmt: skip
case("missing partner", data(lambda d: (d / "high" / "two.png").unlink()),
     "'high'", "1 of 2", "lacks two.png", "in every folder under the same name")  # fmt: skip
case("two files of one name", data(lambda d: disc((64, 64), 0.5).save(d / "low" / "ONE.jpg")),
     "'low'", "ONE.jpg, one.png", "keep one of them")  # fmt: skip
case("sizes that differ", data(lambda d: disc((64, 96), 0.5).save(d / "high" / "one.png")),
     "verylow/one.png is 64×64", "high/one.png is 64×96", "must have one size")  # fmt: skip
case(
    "truncated PNG", data(lambda d: truncate(d / "high" / "one.png")), "high/one.png", "cannot be read", "save it anew"
)
case("text named .png", data(lambda d: (d / "low" / "two.png").write_text("not a picture")),
     "low/two.png", "cannot be read as an image", "save it anew")  # fmt: skip
case("empty image file", data(lambda d: (d / "low" / "two.png").write_bytes(b"")), "low/two.png", "save it anew")
case(
    "decompression bomb", data(lambda d: write_bomb(d / "low" / "two.png")), "low/two.png", "pixels", "save it smaller"
)

# --- the model


def write_folder(path: Path, index: str | None):
    path.mkdir()
    if index is not None:
        (path / "model_index.json").write_text(index)


def write_sd1(path: Path):
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)}, path)


def write_sdxl_keys(path: Path):
    keys = ("conditioner.embedders.0.transformer.weight", "conditioner.embedders.1.model.weight")
    save_file({key: torch.zeros(2) for key in keys}, path)


def write_cut(path: Path):
    save_file({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])


case("model path is not there", model("no-model"), "name_or_path", "no-model", "folder", "hub id like", "check it")
case("model file is not there", model("no.safetensors"), "name_or_path", "no.safetensors", "check the path")
case("a folder without model_index.json", model("m", lambda p: write_folder(p, None)), "name_or_path",
     "model_index.json", "use a diffusers folder")  # fmt: skip
case("a folder that is not SDXL", model("m", lambda p: write_folder(p, '{"_class_name": "StableDiffusionPipeline"}')),
     "name_or_path", "StableDiffusionPipeline", "choose an SDXL model")  # fmt: skip
case("a folder with only an index",
     model("m", lambda p: write_folder(p, '{"_class_name": "StableDiffusionXLPipeline"}')),
     "name_or_path", "has no UNet in its model_index.json", "use a complete folder")  # fmt: skip
case("truncated .safetensors", model("m.safetensors", write_cut), "name_or_path", "m.safetensors", "download it again")
case("text named .safetensors", model("m.safetensors", lambda p: p.write_text("<html>404</html>")),
     "name_or_path", "m.safetensors", "download it again")  # fmt: skip
case("a config folder that does not exist", lambda tmp_path: [write_sdxl_keys(tmp_path / "m.safetensors"), write_experiment(
     tmp_path, pretrained_model={"name_or_path": str(tmp_path / "m.safetensors"), "config": "nowhere"})][1],
     "pretrained_model.config", "nowhere", "use a diffusers folder")  # fmt: skip
case("a .safetensors with SDXL's keys and no weights", model("m.safetensors", write_sdxl_keys),
     "m.safetensors", "contains no UNet", "choose a complete SDXL checkpoint")  # fmt: skip
case("a .safetensors that is not SDXL", model("m.safetensors", write_sd1), "m.safetensors", "choose an SDXL one")
case("a pickle that runs code", model("m.ckpt", lambda p: p.write_bytes(pickle.dumps(Bomb()))),
     "name_or_path", "m.ckpt", "contains code, which is never run", "use a .safetensors file")  # fmt: skip
case("a torch file that runs code", model("m.ckpt", lambda p: torch.save({"state_dict": Bomb()}, p)),
     "name_or_path", "m.ckpt", "which may be code and is never run", "use a .safetensors file")  # fmt: skip
case("text named .ckpt", model("m.ckpt", lambda p: p.write_text("<html>404</html>")), "name_or_path", "m.ckpt",
     "is a web page", "download it again")  # fmt: skip
case("a .ckpt that is not SDXL", model("m.ckpt", lambda p: torch.save({"weight": torch.zeros(2)}, p)), "name_or_path",
     "m.ckpt", "not an SDXL checkpoint", "choose an SDXL one")  # fmt: skip

# --- where the slider goes

RUN = "probe_alpha2.0_rank4_noxattn"


def earlier_slider(tmp_path):
    (tmp_path / "models" / RUN).mkdir(parents=True)
    (tmp_path / "models" / RUN / f"{RUN}_last.safetensors").write_bytes(b"precious")
    return write_experiment(tmp_path)


def file_in_the_way(*parts):
    def arrange(tmp_path):
        argv = write_experiment(tmp_path)
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(exist_ok=True)
        path.write_text("in the way")
        return argv

    return arrange


case("sliders of an earlier run", earlier_slider, RUN, "1 slider", "choose another --name", "--overwrite")
case("previews without prompts", config(preview={"every": 5}), "preview: every is 5", "no prompts", "add prompts")
case("a file where the run's folder goes", file_in_the_way("models", RUN), RUN, "is a file", "--save_path")
case("a file where the save path goes", file_in_the_way("models"), "save.path", "models", "choose another --save_path")


@pytest.mark.parametrize(("arrange", "said"), CASES)
def test_bad_input_ends_with_a_message_and_leaves_no_file(train_main, tmp_path, monkeypatch, capsys, arrange, said):
    monkeypatch.chdir(tmp_path)
    argv = arrange(tmp_path)
    before = everything_in(tmp_path)
    capsys.readouterr()
    status = train_main(argv)
    error = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in error
    assert all(line.startswith("error: ") and line[-1] in ".?" for line in error.splitlines())
    assert [word for word in said if word not in error] == [], error
    assert everything_in(tmp_path) == before


def test_every_mistake_in_a_config_is_reported_at_once(train_main, tmp_path, capsys):
    argv = write_experiment(tmp_path, train={"lr": -1, "sede": 3}, network={"rank": "x"}, flags=["--alpha", "0"])
    assert train_main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for key in ("network.rank: 'x'", "train.lr: -1", "train.sede", "--alpha: 0.0"):
        assert sum(key in line for line in lines) == 1


def test_a_missing_gpu_is_refused_unless_there_is_none_at_all(train_main, tmp_path, capsys):
    """A machine without a GPU trains on its CPU and says so. One with GPUs does not have a hundredth."""
    status = train_main([*write_experiment(tmp_path, flags=["--dry_run"]), "--device", "99"])
    out, error = capsys.readouterr()
    if torch.cuda.device_count() == 0:
        assert status == 0
        assert "no CUDA GPU was found, so the CPU trains" in out
    else:
        assert status == 2
        assert "--device: 99 is not there" in error


def test_a_dry_run_prints_the_plan_and_writes_nothing(train_main, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_scale_folders(tmp_path / "data", folders=("dim", "lit"), names=("one", "two"))
    words = ["--folders", "dim, lit", "--scales", "-1, 0.67", "--iterations", "250", "--dry_run"]
    argv = write_experiment(
        tmp_path, words, pretrained_model={"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0"}
    )
    before = everything_in(tmp_path)
    assert train_main(argv) == 0
    out = capsys.readouterr().out
    assert everything_in(tmp_path) == before
    assert "346 of c3lier noxattn" in out and "4,320,000 parameters" in out  # SDXL-base's, without its weights
    assert "steps   250 " in out and f"{RUN}_last.safetensors" in out
    table = [line.split() for line in out.splitlines() if line.startswith(("image ", "one ", "two "))]
    assert table == [
        ["image", "dim", "→", "-1", "lit", "→", "0.67", "size"],
        ["one", "one.png", "one.png", "64×64"],
        ["two", "two.png", "two.png", "64×64"],
    ]


def test_a_dry_run_fails_where_a_run_would(train_main, tmp_path, capsys):
    argv = earlier_slider(tmp_path)
    assert train_main([*argv, "--dry_run"]) == 2
    capsys.readouterr()
    assert train_main([*argv, "--dry_run", "--overwrite"]) == 0
    assert (tmp_path / "models" / RUN / f"{RUN}_last.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["con", "NUL.v2", "com1", "lpt³.robe", "aux .x"])
def test_names_of_windows_devices_are_refused(name):
    with pytest.raises(ValidationError, match="name of a device in Windows"):
        Save(name=name)
    assert Save(name=f"my_{name}").name == f"my_{name}"
    assert Save(name="console").name == "console"
